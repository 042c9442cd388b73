"""Gather the pages of the documentation site in build/pages, from which mkdocs.yml builds it: `make docs` does both.

(SITE_PAGES names another folder, for both.)

Beside the pages of docs/, as they are:

- The changelog and the benchmarks are pages of the site, and stay where people look for them in the repository.
- The notebooks of examples/ are executed and become pages with their outputs (`--no-run`: without). Their formulas,
  which are TeX, become MathML, which browsers draw by themselves.
- A line `<!-- help: analyze -->` becomes what `layerhess analyze --help` prints.
- Links from a page to such a file lead to its page, so that they work in the repository and on the site.
"""

from __future__ import annotations

import argparse
import base64
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "build" / "pages"
NOTEBOOKS = ("worked_example", "small_transformer", "watched_training", "two_trainings")
MOVED = {"CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
PAGES = MOVED | {f"examples/{name}.ipynb": f"notebooks/{name}.md" for name in NOTEBOOKS}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[#)])")
HELP = re.compile(r"^<!-- help: ?(.*?) -->$", re.MULTILINE)
FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.DOTALL)
WIDEST = 5000  # characters of one output


def main() -> None:
    """Make the pages anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-run", action="store_true", help="do not execute the notebooks")
    gather(Path(os.environ.get("SITE_PAGES", TARGET)), run=not parser.parse_args().no_run)


def gather(target: Path, *, run: bool) -> None:
    """Write all pages, pictures and scripts of the site into ``target``; what was there is gone."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target, ignore=shutil.ignore_patterns("*.py", "*.pyc", "__pycache__"))
    (target / "examples").mkdir()
    for script in (ROOT / "examples").glob("*.py"):
        shutil.copy(script, target / "examples")
    for source, page in MOVED.items():
        shutil.copy(ROOT / source, target / page)
    for page in target.rglob("*.md"):
        own = page.relative_to(target).as_posix()
        page.write_text(with_help(with_links(page.read_text(encoding="utf-8"), own)), encoding="utf-8")
    (target / "notebooks").mkdir()
    for name in NOTEBOOKS:
        text = notebook_page(ROOT / "examples" / f"{name}.ipynb", target / "notebooks", run=run)
        (target / "notebooks" / f"{name}.md").write_text(text, encoding="utf-8")


def with_links(markdown: str, own: str) -> str:
    """Turn the links of the page ``own``, which are those of the repository, into links between pages."""
    home = {page: source for source, page in MOVED.items()}.get(own, f"docs/{own}")

    def moved(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(home), link[1]))
        return posixpath.relpath(PAGES.get(place, place.removeprefix("docs/")), posixpath.dirname(own) or ".")

    return LINK.sub(moved, markdown)


def with_help(markdown: str) -> str:
    """Put the help of each command in the place of its line; all are asked for in one process."""
    commands = HELP.findall(markdown)
    if not commands:
        return markdown
    code = (
        "from layerhess.cli import main\n"
        f"for command in {commands!r}:\n    main([*command.split(), '--help'])\n    print('\\0', flush=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    answers = iter(done.stdout.split("\0"))
    return HELP.sub(lambda _: f"```text\n{next(answers).strip()}\n```", markdown)


def notebook_page(path: Path, folder: Path, *, run: bool) -> str:
    """A notebook as Markdown; its pictures are written into ``folder``."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    if run:
        from nbclient import NotebookClient

        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(FORMULA.sub(drawn, cell.source))
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown(output, folder / f"{path.stem}-{cell.id}.png") for output in cell.outputs]
    return "\n\n".join(part for part in parts if part) + "\n"


def drawn(formula: re.Match[str]) -> str:
    """One formula as MathML."""
    from latex2mathml.converter import convert

    if formula["block"]:  # brackets are as high as what they hold only in a row of their own
        math = convert(formula["block"], display="block")
        math = re.sub(r"<mo>[^<]*</mo><mtable>.*?</mtable><mo>[^<]*</mo>", r"<mrow>\g<0></mrow>", math)
        return f"\n\n{math}\n\n"
    # What begins with <math> would be a paragraph of its own.
    return "&#8288;" + str(convert(formula["inline"]))


def shown(output: Any, picture: Path) -> str:
    """One output of a cell: a picture, a table, or text."""
    data = output.get("data", {})
    text = data.get("text/plain", "")
    if output.output_type == "stream":
        text = output.text if output.name == "stdout" else ""
    if "image/png" in data:
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![What the cell above draws]({picture.name})"
    if "<table" in data.get("text/html", ""):
        return re.sub(r"\s*\n\s*", " ", data["text/html"])
    return f"```text\n{text.rstrip()[:WIDEST]}\n```" if text.strip() else ""


if __name__ == "__main__":
    main()
