"""What strangers and GitHub are told fits the repository: files and targets that exist, the same linters."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

import zoo

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NOT_ON_WINDOWS = {"fcntl", "pty", "termios", "resource", "pwd", "grp"}


def commands(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_make_targets_that_exist(workflow: Path) -> None:
    made = {command.split()[1] for command in commands(workflow) if command.startswith("make ")}
    assert made and made <= targets()


def test_what_decides_here_decides_there() -> None:
    here = re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    there = commands(ROOT / ".github" / "workflows" / "ci.yml")
    assert here and {f"make {target}" for target in here} <= set(there)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_is_permitted_that_is_not_needed(workflow: Path) -> None:
    """Reading the code, and for the one job that publishes, proof of who it is."""
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] in ({}, {"contents": "read"})
    for name, job in content["jobs"].items():
        assert job.get("permissions", {}) in ({}, {"contents": "read"}) or name == "publish", name
        assert job["timeout-minutes"] <= 90


def test_windows_is_given_tests_that_it_can_import() -> None:
    (command,) = (run for run in commands(ROOT / ".github" / "workflows" / "ci.yml") if "pytest" in run)
    rooms = re.findall(r"(?<= )(tests/\S+)", command)
    ignored = {ROOT / name for name in re.findall(r"--ignore=(\S+)", command)}
    assert rooms and all((ROOT / room).is_dir() for room in rooms) and all(path.exists() for path in ignored)
    files = {path for room in rooms for path in (ROOT / room).rglob("*.py")} - ignored
    wrong = {str(path.relative_to(ROOT)): lacking for path in files if (lacking := needs(path) & NOT_ON_WINDOWS)}
    assert len(files) > 50 and not wrong, wrong
    assert "fcntl" in needs(TESTS / "test_docs.py"), "found where it is, through what a test imports"


@cache
def needs(path: Path) -> frozenset[str]:
    """The top-level names of what a file of the tests imports, also through other files of the tests."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    helpers = [TESTS / f"{name}.py" for name in found if (TESTS / f"{name}.py").exists()]
    return frozenset(found).union(*(needs(helper) for helper in helpers if helper != path))


def test_before_a_commit_the_linters_of_make_lint_run() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    lint = [re.sub(r"\$\(MAKE\) --no-print-directory", "make", line).removesuffix(" .") for line in lines]
    assert [hook["entry"] for hook in hooks] == lint


def test_forms_ask_for_what_a_bug_is_found_with() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    required = {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}
    assert required == {"factory", "call", "outcome", "expected", "doctor"}
    factory = next(part["attributes"]["value"] for part in form["body"] if part.get("id") == "factory")
    assert len(factory.splitlines()) <= 10
    made: dict[str, object] = {}
    exec(factory, made)
    assert made["make"]() is not None  # type: ignore[operator]


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`\s]+)`", text)
    files = [name for name in quoted if re.fullmatch(r"(layerhess|tests|docs|\.github|\.ci)/[\w./-]*", name)]
    assert len(files) > 15 and not [name for name in files if not (ROOT / name).exists()]
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets()
    table = text.split("## Where a new one goes")[1]
    for name, file in re.findall(r"`(\w+)`[^|`]*(?:and `\w+` )?in `(layerhess/[^`]+)`", table):
        assert name in (ROOT / file).read_text(encoding="utf-8"), f"{name} in {file}"
    row = re.search(r"^ +(_case\(.*\),)$", text, re.MULTILINE)
    assert row is not None
    made = eval(row[1].removesuffix(","), dict(vars(zoo)))
    assert made.build(torch.float64, 0).objective() is not None and made.name not in zoo.BY_NAME
