"""docs/architecture.md shows every room and every module of it, in an order in which imports point down only."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "layerhess"
MOST_ENTRIES, MOST_LINES = 16, 400
FRONT = "__init__"


@cache
def page() -> dict[str, set[str]]:
    """Folder -> the modules that the tree of the page names in it, in the order of the page."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    found: dict[str, set[str]] = {}
    room = place = ""
    for line in text.split("```text\nlayerhess/\n")[1].split("```")[0].splitlines():
        name, told = re.match(r"(?: {2,4}([\w.]+)/?)?\s+(.*)", line).groups()  # type: ignore[union-attr]
        if name:
            inner = line.startswith("    ")
            place = f"{room}/{name}" if inner else name.removesuffix(".py")
            room = room if inner else place
            found[place] = set()
        found[place] |= set(re.findall(r"\w+", re.sub(r"\([^)]*\)?|[^(]*\)", " ", told)))
    return found


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports, those inside functions and for types alone included."""
    graph = {}
    for name, path in modules().items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports by a relative name"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= whole if whole & modules().keys() else {str(node.module)}
        graph[name] = (found & modules().keys()) - {name}
    return graph


def room_of(module: str) -> str:
    return (*module.split("."), FRONT)[1]


def test_every_room_and_every_module_is_on_the_page() -> None:
    for folder, told in page().items():
        if folder in (FRONT, "errors"):
            continue
        files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
        assert files <= told, f"{folder}/ on the page lacks {sorted(files - told)}"
    rooms = {room_of(name) for name in modules()} - {"__main__"}
    assert rooms == {folder for folder in page() if "/" not in folder}
    folders = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.glob("*/*/__init__.py")}
    assert folders == {folder for folder in page() if "/" in folder}


def test_a_room_uses_those_below_it_only() -> None:
    place = {name: i for i, name in enumerate(folder for folder in page() if "/" not in folder)}
    wrong = [
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if room_of(module) != "__main__" and place[room_of(other)] < place[room_of(module)]
    ]
    assert not wrong, wrong


def test_no_module_imports_in_a_circle() -> None:
    try:
        tuple(graphlib.TopologicalSorter(imports()).static_order())
    except graphlib.CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_the_package_has_few_places_and_no_module_needs_scrolling() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


def test_tests_have_the_rooms_of_the_package() -> None:
    tests = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert tests == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}


def test_sums_over_batches_are_made_in_one_module() -> None:
    """Whoever walks the batches of an objective hands them to ``add_up``, or looks at one of them."""
    walks = {
        name: [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if _walks_batches(node)]
        for name, path in modules().items()
    }
    assert {name for name, found in walks.items() if found} == {
        "layerhess.curvature.data_pass",
        "layerhess.analysis.batching",
    }, "the pass makes graphs of the batches, and two of them are compared; everybody else gives a share to add_up"


def _walks_batches(node: ast.AST) -> bool:
    loops = (ast.For, ast.comprehension)
    return isinstance(node, loops) and re.search(r"\.batches\(\)", ast.unparse(node.iter)) is not None


def test_memory_is_asked_for_in_one_place() -> None:
    asking = {name for name, path in modules().items() if "free_bytes(" in path.read_text()}
    assert asking == {"layerhess.curvature.device"}
    clocks = {name for name, path in modules().items() if "perf_counter" in path.read_text()}
    assert clocks == {"layerhess.curvature.counters", "layerhess.cli.demo"}  # the demo times its own training


HEAVY = ("matplotlib", "pandas", "scipy.optimize", "jinja2", "sklearn", "transformers")


def test_importing_the_library_loads_no_library_for_drawing() -> None:
    code = f"import sys, layerhess; print([name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
