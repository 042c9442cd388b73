"""Models that nobody here wrote: every number within its bound of the truth, the model as it was. `make test-real`."""

from __future__ import annotations

from typing import Any

import pytest

from atlas import catalogue, truth
from atlas.measurement import EVERY, EXAMINED, FULL, RESULTS, load, measure


@pytest.fixture(scope="module")
def found(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What layerhess found of a subject, once for all tests."""
    kept = load(name) if request.config.getoption("kept") else None
    return kept or measure(name)


subjects = pytest.mark.parametrize("name", catalogue.ENTRIES, scope="module")


@subjects
def test_every_block_has_its_largest_eigenvalue(name: str, found: dict[str, Any]) -> None:
    subject = catalogue.made(name)
    assert list(found["modules"]) == list(subject.members())
    for block, told in found["modules"].items():
        assert told["status"].startswith(("converged", "complete", "zero")), f"{block}: {told['status']}"


@subjects
def test_largest_eigenvalues_are_within_their_bounds_of_the_truth(name: str, found: dict[str, Any]) -> None:
    kept = truth.load(name)
    assert kept is not None and kept["fingerprint"] == found["fingerprint"], (
        f"the truths of {name} are of other weights, data or versions: make truths-real"
    )
    subject = catalogue.made(name)
    assert list(kept["values"]) == [*subject.checked, FULL]
    for block, true in kept["values"].items():
        for told in _told_of(block, found):
            value, bound = told["top"]
            assert abs(value - true["value"]) <= bound + true["residual"], f"{block}: {told}, {true}"


def _told_of(block: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    return [found[table][block] for table in ("modules", "examined") if block in found[table]]


@subjects
def test_both_ends_trace_and_density_of_the_examined_blocks(name: str, found: dict[str, Any]) -> None:
    subject = catalogue.made(name)
    assert set(found["examined"]) == {*subject.examined, FULL}
    whole = found["examined"][FULL]
    for block, told in found["examined"].items():
        assert told["status"].startswith(("converged", "complete")), f"{block}: {told['status']}"
        assert told["mean curvature"][1] >= 0.0 and told["effective rank"][1] >= 0.0
        # the ends of a block lie within those of the full model (Cauchy), and its mean between its ends
        (top, bound), (bottom, under) = told["top"], told["bottom"]
        assert top - bound <= whole["top"][0] + whole["top"][1]
        assert bottom + under >= whole["bottom"][0] - whole["bottom"][1]
        mean, error, _ = told["mean curvature"]
        assert bottom - under - 4 * error <= mean <= top + bound + 4 * error


@subjects
def test_the_model_is_as_it_was(found: dict[str, Any]) -> None:
    assert found["changed"] == []


@subjects
def test_each_analysis_has_a_report_with_all_its_blocks(name: str, found: dict[str, Any]) -> None:
    for folder, blocks in ((EVERY, found["modules"]), (EXAMINED, found["examined"])):
        page = (RESULTS / name / folder / "report.html").read_text(encoding="utf-8")
        assert all(f'data-block="{block}"' in page for block in blocks)
