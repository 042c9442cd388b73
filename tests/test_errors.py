"""The text of an error is short; what is left out of it is in its details."""

from __future__ import annotations

import random

import pytest

import layerhess as lh
from layerhess.errors import LONGEST, MORE


def words(rng: random.Random, most: int) -> str:
    return " ".join("x" * rng.randint(1, rng.choice([5, 60, 500])) for _ in range(rng.randint(0, most)))


@pytest.mark.parametrize("seed", range(200))
def test_no_text_is_longer_than_400_characters(seed: int) -> None:
    rng = random.Random(seed)
    message, where, advice = words(rng, 60) or "m", words(rng, 30), words(rng, 60)
    error = lh.InputError(message, where=where, what_to_do=advice, details=["more"])
    assert (error.message, error.where, error.what_to_do) == (message, where, advice)
    assert len(str(error)) <= LONGEST and error.details[-1] == "more"
    cut = MORE in str(error)
    assert len(error.details) == 1 + cut
    if cut:
        assert message in error.details[0] and where in error.details[0] and advice in error.details[0]


def test_what_is_short_stays_whole_beside_what_is_long() -> None:
    error = lh.CheckError("it is wrong", where="layer " * 200, what_to_do="repair it")
    assert str(error).startswith("it is wrong. Where: layer") and str(error).endswith("What to do: repair it.")
