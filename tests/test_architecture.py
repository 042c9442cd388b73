"""docs/architecture.md lists every room, in an order in which imports point up only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "layerhess"


def listed() -> list[str]:
    """Names of modules and sub-packages in the order of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("```text\nlayerhess/\n")[1].split("```")[0]
    lines = [line[:21] + (" " + line[21:] if re.search(r"\w+\.py", line[21:]) else "") for line in tree.splitlines()]
    names: list[str] = []
    for line in lines:
        inside = not line.startswith("  ") or "/" in line[:21]
        found = re.findall(r"(\w+)/", line[:21]) if inside else re.findall(r"(\w+)\.py", line)
        names.extend(name for name in found if name not in names)
        names.extend(name for name in re.findall(r"   (\w+)\.py   ", line) if name not in names)
    return names


def rooms() -> set[str]:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    return modules | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imports_at_the_top(path: Path) -> set[str]:
    """First component below the package of every import made when the module is loaded."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "layerhess":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found & rooms()


def test_every_room_is_on_the_page_once() -> None:
    names = [name for name in listed() if name != "__init__"]
    assert sorted(names) == sorted(rooms())


def test_imports_point_up_the_list() -> None:
    place = {name: i for i, name in enumerate(listed())}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        wrong += [f"{room} -> {other}" for other in imports_at_the_top(path) if place[other] > place[room]]
    assert not wrong, sorted(set(wrong))


def test_no_module_needs_scrolling_past_four_hundred_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in PACKAGE.rglob("*.py") if (n := len(path.open().readlines())) > 400
    }
    assert not long
