"""The documentation as a site: it builds strictly, asks the network for nothing, and has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerhess

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, but for the notebooks' outputs (tests/test_examples.py executes these)."""
    pytest.importorskip("mkdocs", reason="needs the extra docs: pip install -e '.[docs]' (Python 3.11 or newer)")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    pages = [sys.executable, "docs/make_pages.py", "--no-run"]
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "SITE_PAGES": str(tmp_path_factory.mktemp("pages"))}
    for command in (pages, build):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    pages |= {Path("notebooks", path.name).with_suffix(".html") for path in (ROOT / "examples").glob("*.ipynb")}
    pages |= {Path("changelog.html"), Path("benchmarks.html")}
    assert not [str(page) for page in pages if not (site / page).exists()]


def test_no_page_asks_the_network_for_anything(site: Path) -> None:
    elsewhere = r"""=["']?(?:https?:)?//"""
    loads = re.compile(rf"<(?:script|img|iframe|source)\b[^>]*\bsrc{elsewhere}|<link\b[^>]*\bhref{elsewhere}")
    for page in site.rglob("*.html"):
        found = loads.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found and found[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"""@import|url\(["']?(?:https?:)?//""", style.read_text(encoding="utf-8")), style.name


def test_the_reference_shows_signatures_doctests_and_links(site: Path) -> None:
    page = (site / "reference" / "analyze.html").read_text(encoding="utf-8")
    assert 'id="layerhess.analyze"' in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert 'href="results.html#layerhess.Analysis"' in page
    everything = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    assert not re.findall(r":(?:class|func|meth|mod):", everything)


def test_the_command_line_s_help_is_that_of_the_program(site: Path) -> None:
    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "<!-- help" not in page
    assert page.count("Usage: ") >= 8
    assert "--learning-rate" in page


def test_formulas_of_notebooks_are_drawn(site: Path) -> None:
    page = (site / "notebooks" / "worked_example.html").read_text(encoding="utf-8")
    assert page.count("<math") > 20
    words = re.sub(r"<(pre|code)\b.*?</\1>", "", page[page.index("<article") :], flags=re.DOTALL)
    assert "$" not in words and "\\begin" not in words


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    pages = [path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md")]
    shown = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]
    assert sorted(set(shown)) == sorted(shown)
    assert {f"layerhess.{name}" for name in layerhess.__all__} <= set(shown)


def test_the_first_block_of_the_page_for_one_s_own_model_is_ten_lines_that_stand_alone(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial" / "your-own-model.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.strip()]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-c", block[1]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2.weight" in done.stdout and "Everything converged" in done.stdout
