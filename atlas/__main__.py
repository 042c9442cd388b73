"""`python -m atlas`: docs/atlas.md, atlas.json, atlas.csv and their picture, from the results of `make test-real`.

A subject without results keeps the figures that docs/atlas.json has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import catalogue, page, pictures
from .measurement import load

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write all four files."""
    kept = DOCS / "atlas.json"
    before: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["subjects"] if kept.is_file() else {}
    subjects = {}
    for name, entry in catalogue.ENTRIES.items():
        found = load(name) or before.get(name)
        if found is None:
            print(f"{name}: no results, left out (make test-real)")
            continue
        words = {"title": entry.title, "data": entry.data, "loss in words": entry.loss}
        subjects[name] = words | {key: value for key, value in found.items() if key not in words}
    atlas = {"subjects": subjects}
    kept.write_text(json.dumps(atlas, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (DOCS / "atlas.md").write_text(page.text(atlas), encoding="utf-8")
    (DOCS / "atlas.csv").write_text(page.table(atlas), encoding="utf-8")
    pictures.draw(subjects, DOCS / "images" / "atlas.svg")


if __name__ == "__main__":
    main()
