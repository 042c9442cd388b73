"""Every code block of the README and the documentation runs, and every link inside the repository leads somewhere.

What the blocks of a page mean, in order, in one temporary folder and one Python session per page:

- ```python            is executed; with title="file.py" it is written to that file instead, for later blocks;
- ```pycon             is executed, and what it prints must be what the page shows (`...` stands for anything);
- ```console           each line after `$ ` is a shell command that must exit with 0; other lines are output.
                       `make ...` and `pip install ...` would rebuild this very environment, so their targets and
                       extras are looked up instead; `git clone ...` and `cd ...` are skipped. `layerhess ...`
                       is called in this process where no shell is needed: most of a short run is the start.

Other languages (text, json, ...) are not code to run.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from commands import working_in
from layerhess.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def called(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the rest of its info string, its text, and the line it starts on."""

    language: str
    info: str
    body: str
    line: int

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found[1] if found else None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, _, info = match["info"].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, info, textwrap.dedent(match["body"]), line))
    return found


def run_python(block: Block, page: Path, session: dict[str, Any]) -> None:
    # Padding makes the line numbers of a failure those of the page.
    exec(compile("\n" * block.line + block.body, str(page), "exec"), session)


def run_pycon(block: Block, page: Path, session: dict[str, Any]) -> None:
    parsed = doctest.DocTestParser().get_doctest(block.body, session, page.name, str(page), block.line)
    parsed.globs = session  # get_doctest copies; the session must go on
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(parsed, out=told.append, clear_globs=False)
    assert result.failed == 0, "".join(told)


def run_console(block: Block, page: Path, folder: Path) -> None:
    # Some commands need room for their working: no colours, no windows, the installed layerhess first.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "NO_COLOR": "1",
    }
    for line in block.body.splitlines():
        if not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ").split("  #")[0].strip()
        if command.startswith(("git clone", "cd ")):
            continue
        if command.startswith("make"):
            subprocess.run(command.replace("make", "make -n", 1), shell=True, cwd=ROOT, check=True, capture_output=True)
            continue
        if "pip install" in command:
            check_extras(command)
            continue
        words = shlex.split(command)
        if words[0] == "layerhess" and not any(word in ("|", "<", ">", ">>", "&&") for word in words):
            assert main(words[1:]) == 0, f"{page.name}:{block.line}: {line}"
            continue
        command = re.sub(r"^layerhess\b", f'"{sys.executable}" -m layerhess', command)
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{page.name}:{block.line}: {line}\n{done.stdout}\n{done.stderr}"


def check_extras(command: str) -> None:
    declared = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    for extra in re.findall(r"\[([a-z,]+)\]", command):
        assert set(extra.split(",")) <= declared, f"{command}: no such extra"


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    session: dict[str, Any] = {"__name__": "__page__"}
    left_out = []
    for block in blocks_of(page):
        if re.search(r"^(import|from) torchao\b", block.body, re.MULTILINE) and not find_spec("torchao"):
            left_out.append(block.line)
            continue
        where = f"{page.name}:{block.line}"
        try:
            if block.title is not None:
                (tmp_path / block.title).write_text(block.body, encoding="utf-8")
            elif block.language == "python":
                run_python(block, page, session)
            elif block.language == "pycon":
                run_pycon(block, page, session)
            elif block.language == "console":
                with working_in(tmp_path, monkeypatch):
                    run_console(block, page, tmp_path)
        except Exception as error:
            raise AssertionError(f"the block at {where} fails: {type(error).__name__}: {error}") from error
    if left_out:
        pytest.skip(f"all blocks run but those of torchao, which is not installed: lines {left_out}")


def test_the_readmes_first_python_block_stands_alone(tmp_path: Path) -> None:
    block = next(block for block in blocks_of(ROOT / "README.md") if block.language == "python")
    subprocess.run(
        [sys.executable, "-c", block.body],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        check=True,
        timeout=300,
        capture_output=True,
    )


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor and other.suffix == ".md":
            assert anchor[1:] in headings(other), f"{page.name} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for named in re.findall(r"`([\w/]+/\w+\.py)`", text):
        assert any((place / named).exists() for place in (ROOT, ROOT / "layerhess")), f"{page.name} names {named}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_parser_sees_every_fence() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page.name
