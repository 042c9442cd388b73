"""A torch that is too old is refused at import, and no private name of torch is used that the table does not have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from layerhess.objective import torch_version
from layerhess.objective.torch_version import CHECKED, FAULTS, OLDEST, PRIVATE, SAMPLES, Private, missing, release

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "layerhess"
# Private names of others than torch, and of our own objects seen from outside.
OTHERS = {
    "_fields", "_replace", "_asdict",  # of namedtuples
    "_forward_module", "_FabricModule", "_strategy", "_original_forward",  # Lightning, accelerate
    "_dataloader", "_Callback",  # of launchers' loaders; Lightning's callback
    "_C_mxfp8", "_C_cutlass",  # torchao
    "_tensor_name", "_WeightNorm",  # torch's pruning and weight norm, told by name
    "_getframe",  # of Python
    "_operators",  # of a run of ours
}  # fmt: skip
# A torch of which nothing but its version is looked at.
OLD = """
class Anything:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
Tensor = Anything
__version__ = {version!r}
def __getattr__(name): return Anything()
"""
COMMAND = "import sys\nfrom layerhess.cli import main\nsys.exit(main())\n"  # as pip writes it


def old_torch(folder: Path, version: str) -> dict[str, str]:
    """An environment in which ``import torch`` finds this version."""
    for name in ("torch", "torch/nn"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(OLD.format(version=version))
    return {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "", "HOME": str(folder)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_torch_that_is_too_old_is_refused_in_one_sentence(tmp_path: Path) -> None:
    environment = old_torch(tmp_path, "2.5.1+cpu")
    said = (
        rf"layerhess needs torch {re.escape(OLDEST)} or newer, and this is torch 2\.5\.1\+cpu: python -m pip install '"
    )
    found = run(environment, "-c", "import layerhess.linalg.bounds")
    assert found.returncode == 1 and re.match("ImportError: " + said, found.stderr.splitlines()[-1])
    script = tmp_path / "layerhess"
    script.write_text(COMMAND)
    for arguments in (("-m", "layerhess", "doctor"), (str(script), "analyze", "factory.py:make")):
        found = run(environment, *arguments)
        assert found.returncode == 2 and found.stdout == ""
        assert len(found.stderr.splitlines()) == 1 and re.match(said, found.stderr), found.stderr


@pytest.mark.parametrize("version", ["1.13.1", "2.0", "2.6.0a0+git1234", "0.4.1"])
def test_every_older_one_is(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=re.escape(f"this is torch {version}: ")):
        torch_version._refuse_unusable()


@pytest.mark.parametrize("version", [OLDEST, "2.7.0+cu126", "2.10.0", "3.0.0.dev20270101", "no number"])
def test_newer_ones_are_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    torch_version._refuse_unusable()


def test_a_name_that_the_package_imports_and_torch_lacks_is_said_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Private("torch.utils._gone", ("_thing",), "everything")
    monkeypatch.setattr(torch_version, "PRIVATE", (*PRIVATE, row))
    said = r"lacks torch\.utils\._gone\._thing, which layerhess uses: python -m pip install '"
    with pytest.raises(ImportError, match=said):
        torch_version._refuse_unusable()
    monkeypatch.setattr(torch_version, "PRIVATE", (*PRIVATE, Private("torch._C", ("_no",), "speed", "slower")))
    torch_version._refuse_unusable()


def test_this_torch_has_all_names() -> None:
    assert missing() == []


def test_names_that_are_gone_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    assert missing() == missing(everywhere=False) == ["torch._C._functorch.peek_interpreter_stack"]
    row = Private("LogBackward0", ("_saved_self", "_saved_nothing"), "something")
    monkeypatch.setattr(torch_version, "PRIVATE", (row,))
    assert missing() == ["_saved_nothing of LogBackward0"] and missing(everywhere=False) == []
    monkeypatch.setitem(SAMPLES, "LogBackward0", torch_version._node("LogarithmBackward0", torch.log))
    assert missing() == ["_saved_self of LogBackward0", "_saved_nothing of LogBackward0"]


def test_the_names_are_looked_for_whatever_is_switched_off() -> None:
    state = torch.get_rng_state()
    for switched in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")):
        with switched:
            assert missing() == []
    assert torch.equal(torch.get_rng_state(), state)


def test_the_table_has_every_private_name_that_is_used_and_no_other() -> None:
    """An attribute, an imported name or a text that begins with one underscore, and is not defined in the package."""
    known = {name for row in PRIVATE for name in row.names}
    known |= {part for row in PRIVATE for part in row.owner.split(".") if row.owner.startswith("torch.")}
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "torch_version.py"}
    strange = {}
    for path, text in texts.items():
        tree = ast.parse(text)
        if names := set(private(tree)) - set(defined(tree)) - known - OTHERS:
            strange[path.name] = sorted(names)
    assert strange == {}
    told = [name for row in PRIVATE for name in row.names if not name.startswith("_saved_")]  # some are put together
    assert [name for name in told if not any(name in text for text in texts.values())] == []


def defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and on_self(node):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def private(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not on_self(node):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        yield from (name for name in names if re.match("_[^_]", name))


def on_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_releases_are_read_off_versions() -> None:
    made = {"2.13.0+cpu": "2.13.0", "2.13.0": "2.13.0", "2.14.0a0+gitabc": "2.14.0a0", "2.15.0.dev1": "2.15.0.dev1"}
    assert {version: release(version) for version in made} == made
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in CHECKED)


def test_what_is_said_elsewhere_is_the_same() -> None:
    page = (ROOT / "docs" / "explanation" / "versions.md").read_text()
    assert f'"torch>={OLDEST}"' in (ROOT / "pyproject.toml").read_text()
    assert f"torch {OLDEST}.0" in page
    constraints = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==(.*)$", constraints, re.MULTILINE).group(1) in CHECKED  # type: ignore[union-attr]
    for version, pythons in CHECKED.items():
        assert re.search(rf"\| {re.escape(version)} \| {', '.join(pythons)} \|", page), version
    for fault in FAULTS:
        assert f"| {fault.what} | {fault.fault} | {fault.instead} |" in page, fault.what
