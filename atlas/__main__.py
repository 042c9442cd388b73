"""`python -m atlas`: docs/atlas.md, JSON, CSV, picture and reports, from the results of `make test-real`.

A subject without results keeps the figures and reports that docs/ has.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import catalogue, page, pictures
from .measurement import EVERY, EXAMINED, RESULTS, load

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write all of them."""
    kept = DOCS / "atlas.json"
    before: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["subjects"] if kept.is_file() else {}
    subjects = {}
    (DOCS / page.REPORTS).mkdir(exist_ok=True)
    for name, entry in catalogue.ENTRIES.items():
        found = load(name) or before.get(name)
        if found is None:
            print(f"{name}: no results, left out (make test-real)")
            continue
        for kind in (EVERY, EXAMINED):
            made = RESULTS / name / kind / "report.html"
            if made.is_file():
                shutil.copyfile(made, DOCS / page.report(name, kind))
        words = {"title": entry.title, "data": entry.data, "loss in words": entry.loss}
        subjects[name] = words | {key: value for key, value in found.items() if key not in words}
    atlas = {"subjects": subjects}
    kept.write_text(json.dumps(atlas, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (DOCS / "atlas.md").write_text(page.text(atlas), encoding="utf-8")
    (DOCS / "atlas.csv").write_text(page.table(atlas), encoding="utf-8")
    pictures.draw(subjects, DOCS / "images" / "atlas.svg")


if __name__ == "__main__":
    main()
