"""Write each notebook from its script, cell by cell and without outputs; the same text every time.

In the script, `# %%` begins a code cell and `# %% [markdown]` one of plain words, as editors understand it.
Run it after every change of the script: `make docs` does.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
NOTEBOOKS = ("worked_example", "small_transformer", "watched_training", "two_trainings")


def notebook_text(script: str) -> str:
    """Return the notebook's file content for a script in the percent format.

    Raises:
        ValueError: if the script does not begin with a cell marker.
    """
    before, *parts = ("\n" + script).split("\n# %%")
    if before.strip():
        raise ValueError("the script must begin with a cell marker: # %%")
    cells = []
    for index, part in enumerate(parts):
        first, _, body = part.partition("\n")
        words = first.strip() == "[markdown]"
        lines = body.strip("\n").splitlines()
        if words:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [line + "\n" for line in lines[:-1]] + lines[-1:]
        cell = {"cell_type": "markdown" if words else "code", "id": f"cell-{index:02d}", "metadata": {}}
        cell |= {"source": source} if words else {"execution_count": None, "outputs": [], "source": source}
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in NOTEBOOKS:
        script, notebook = HERE / f"{name}.py", HERE / f"{name}.ipynb"
        notebook.write_text(notebook_text(script.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {notebook}")
