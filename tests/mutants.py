"""Small faults put into the code, one at a time, in a copy: how many do the tests of the fault's own room find?"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("linalg", "objective", "curvature", "checks")
TYPES = {"annotation", "returns", "decorator_list", "bases"}  # no test can see a fault in these, nor need it in words
WORDS = {"strict", "stacklevel", "where", "what_to_do"}
OPERATORS = (
    "Lt:LtE,GtE LtE:Lt,Gt Gt:GtE,LtE GtE:Gt,Lt Eq:NotEq NotEq:Eq Is:IsNot IsNot:Is In:NotIn NotIn:In And:Or Or:And"
)
OPERATORS += " Add:Sub Sub:Add Mult:Div Div:Mult FloorDiv:Mult Mod:Mult Pow:Mult BitOr:BitAnd BitAnd:BitOr"
OTHERS = {own: others.split(",") for own, others in (pair.split(":") for pair in OPERATORS.split())}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
PYTEST = "-m pytest -x -q -p no:cacheprovider --doctest-modules -o faulthandler_timeout=100"
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
Fault = tuple[int, str, Callable[[], None]]  # line, what changes, and the change itself, in the tree it was found in


def faults(node: ast.AST, result: str = "") -> Iterator[Fault]:
    """Every fault that can be put below ``node``, in the order of the source."""
    result = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else result
    for name, value in ast.iter_fields(node):
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if name in TYPES or not isinstance(child, ast.AST) or is_words(child, isinstance(node, ast.Module)):
                continue
            for other in variants(child, result):

                def change(name: str = name, value: object = value, at: int = place, new: ast.AST = other) -> None:
                    value.__setitem__(at, new) if isinstance(value, list) else setattr(node, name, new)

                before, after = (" ".join(ast.unparse(n).split()) for n in (child, other))
                if before != after:
                    yield getattr(child, "lineno", 0), f"{before[:70]}  ->  {after[:70]}", change
            if not isinstance(child, ast.Raise):
                yield from faults(child, result)


def is_words(node: ast.AST, top: bool) -> bool:
    """Texts, assertions, names of types and interfaces."""
    if isinstance(node, ast.ClassDef):
        return any("Protocol" in ast.unparse(base) for base in node.bases)
    if isinstance(node, ast.Assign) and top:
        return all(isinstance(n, ast.Name) and (n.id.istitle() or n.id == "__all__") for n in node.targets)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, (ast.JoinedStr, ast.Assert)) or getattr(node, "arg", "") in WORDS


def variants(node: ast.AST, result: str) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Compare):
        for other in OTHERS[type(node.ops[0]).__name__]:
            yield ast.Compare(node.left, [getattr(ast, other)(), *node.ops[1:]], node.comparators)
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for other in OTHERS.get(type(node.op).__name__, []):
            yield type(node)(**(fields | {"op": getattr(ast, other)()}), lineno=0)
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield type(node)(**(fields | {"test": ast.UnaryOp(ast.Not(), node.test)}), lineno=0)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        numbers = [not node.value] if isinstance(node.value, bool) else [node.value + 1, int(node.value == 0)]
        yield from map(ast.Constant, numbers)
    elif isinstance(node, (ast.Name, ast.Attribute)) and (own := fields.get("id", fields.get("attr"))) in NAMES:
        yield type(node)(**(fields | {"id" if isinstance(node, ast.Name) else "attr": NAMES[str(own)]}))
    elif isinstance(node, ast.Return) and node.value is not None and result != "None":
        yield ast.Return(ast.Constant(None))
        if result in ("bool", "float", "int", "Tensor", "Floats"):
            yield ast.Return(ast.UnaryOp(ast.Not() if result == "bool" else ast.USub(), node.value))
    elif isinstance(node, (ast.Expr, ast.Raise, ast.Continue, ast.Break)) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    ):
        yield ast.Pass()


def drawn(rooms: list[str], number: int, seed: int) -> list[tuple[str, int, str, str]]:
    """(module, line, what changes, the module with the fault), uniformly over the lines that can have one."""
    modules = sorted(p.relative_to(ROOT).as_posix() for r in rooms for p in (ROOT / "layerhess" / r).rglob("*.py"))
    trees = {module: (ROOT / module).read_text() for module in modules}
    lines = sorted({(module, line) for module in modules for line, _, _ in faults(ast.parse(trees[module]))})
    rng, found = random.Random(seed), []
    for module, line in rng.sample(lines, min(number, len(lines))):
        tree = ast.parse(trees[module])
        _, what, change = rng.choice([fault for fault in faults(tree) if fault[0] == line])
        change()
        found.append((module, line, what, ast.unparse(tree)))
    return found


def survives(copy: Path, module: str, source: str, limit: float) -> bool:
    """Whether the tests of the module's room pass with this source in its place: the nearest tests first."""
    path, room, kept = copy / module, Path(module).parts[1], (copy / module).read_text()
    near = (path.parent.relative_to(copy / "layerhess").as_posix(), module.removesuffix(".py").replace("/", "."))
    tests = sorted((copy / "tests" / room).rglob("test_*.py"))
    tests.sort(key=lambda p: (p.stem != f"test_{path.stem}", near[1] not in p.read_text(), near[0] not in str(p)))
    command = [sys.executable, *PYTEST.split(), "-o", "faulthandler_exit_on_timeout=true", "-m", "not slow"]
    path.write_text(source)
    try:
        done = subprocess.run(
            [*command, str(path), *map(str, tests), str(copy / "layerhess" / room)], cwd=copy, timeout=limit,
            env={**os.environ, **SURROUNDINGS, "PYTHONPATH": str(copy)}, capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(kept)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--goal", type=float, default=0.85, help="share to be found; exit code 1 below it")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for one fault: what hangs is found")
    given = parser.parse_args()
    total, found = Counter[str](), Counter[str]()
    copies: queue.Queue[Path] = queue.Queue()

    def alive(mutant: tuple[str, int, str, str]) -> bool:
        copy, start, (module, line, what, source) = copies.get(), time.perf_counter(), mutant
        passed = survives(copy, module, source, given.limit)
        copies.put(copy)
        spent = f"{time.perf_counter() - start:5.0f} s"
        print(f"{'SURVIVED' if passed else 'killed':9}{spent}  {module}:{line}  {what}", flush=True)
        return passed

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        for number in range(given.jobs):
            copies.put(Path(folder) / str(number))
            shutil.copytree(ROOT, Path(folder) / str(number), ignore=shutil.ignore_patterns(".*", "__pycache__"))
        rooms = [f"layerhess/{room}/__init__.py" for room in given.rooms]
        if not all(pool.map(alive, [(room, 0, "no fault", (ROOT / room).read_text()) for room in rooms])):
            raise SystemExit("a room's tests fail without any fault in the code")
        mutants = drawn(given.rooms, given.number, given.seed)
        for (module, *_), survived in zip(mutants, pool.map(alive, mutants), strict=True):
            total.update((Path(module).parts[1], "all"))
            found.update(() if survived else (Path(module).parts[1], "all"))
    for room, number in total.items():
        print(f"{room}: {found[room]} of {number} found, {found[room] / number:.0%}")
    return int(found["all"] < given.goal * total["all"])


if __name__ == "__main__":
    sys.exit(main())
