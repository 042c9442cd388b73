"""docs/atlas.md is what its command prints from docs/atlas.json, and its sentences are true of those numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from atlas import catalogue, page, pictures, sentences, truth
from atlas.measurement import EVERY, EXAMINED

DOCS = Path(__file__).resolve().parents[1] / "docs"
ATLAS: dict[str, Any] = json.loads((DOCS / "atlas.json").read_text(encoding="utf-8"))
SUBJECTS = ATLAS["subjects"]
every_subject = pytest.mark.parametrize("name", catalogue.ENTRIES)


def test_the_page_and_the_table_are_made_of_the_figures() -> None:
    assert (DOCS / "atlas.md").read_text(encoding="utf-8") == page.text(ATLAS), "make atlas"
    assert (DOCS / "atlas.csv").read_text(encoding="utf-8") == page.table(ATLAS), "make atlas"


def test_the_picture_is_made_of_the_figures(tmp_path: Path) -> None:
    pictures.draw(SUBJECTS, tmp_path / "atlas.svg")
    assert (DOCS / "images" / "atlas.svg").read_text(encoding="utf-8").count("<use") == (
        tmp_path / "atlas.svg"
    ).read_text(encoding="utf-8").count("<use")
    assert (DOCS / "images" / "atlas.svg").stat().st_size < 300_000


@every_subject
def test_every_subject_is_there_as_the_catalogue_has_it(name: str) -> None:
    entry, found = catalogue.ENTRIES[name], SUBJECTS[name]
    assert (found["title"], found["data"], found["loss in words"]) == (entry.title, entry.data, entry.loss)
    assert len(found["examined"]) == 6 and found["changed"] == []
    for kind, blocks in ((EVERY, found["modules"]), (EXAMINED, found["examined"])):
        report = (DOCS / page.report(name, kind)).read_text(encoding="utf-8")
        assert all(f'data-block="{block}"' in report for block in blocks)


@every_subject
def test_every_figure_has_its_error(name: str) -> None:
    found = SUBJECTS[name]
    for block, module in found["modules"].items():
        value, bound = module["top"]
        assert math.isfinite(value) and (bound > 0.0 or value == 0.0), block
        assert module["status"].startswith(("converged", "complete", "zero")), block
        assert module["share"][1] >= 0.0
    assert sum(module["share"][0] for module in found["modules"].values()) == pytest.approx(1.0, abs=1e-5)
    for ends in found["examined"].values():
        assert all(ends[key][1] > 0.0 for key in ("top", "bottom", "mean curvature", "effective rank"))


@every_subject
def test_top_values_are_within_their_bounds_of_the_truths(name: str) -> None:
    kept, found = truth.load(name), SUBJECTS[name]
    assert kept is not None and kept["fingerprint"] == found["fingerprint"]
    assert len(kept["values"]) == 11
    for block, true in kept["values"].items():
        assert true["residual"] <= 1e-4 * abs(true["value"])
        for table in ("modules", "examined"):
            if block in found[table]:
                value, bound = found[table][block]["top"]
                assert abs(value - true["value"]) <= bound + true["residual"], (table, block)


def test_there_are_ten_sentences_and_each_is_true_of_the_figures() -> None:
    told = sentences.sentences(SUBJECTS)
    assert len(told) == 10 and all(re.search(r"\d", sentence) for sentence in told)
    broken = json.loads(json.dumps(SUBJECTS))
    for found in broken.values():  # of other numbers they are not said
        for module in found["modules"].values():
            module["share"], module["top"] = [0.0, 0.0], [1.0, 0.1]
        for ends in found["examined"].values():
            ends.update({"top": [1.0, 0.1], "bottom": [0.0, 0.1], "effective rank": [1.0, 0.1, ""]})
    with pytest.raises(ArithmeticError, match="sentence"):
        sentences.sentences(broken)
