"""What the models have in common and where they differ: each sentence with the condition under which it is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from layerhess.linalg.numbers import number

from .pictures import decades, is_norm

FULL = "(full)"
Subjects = dict[str, Any]


def sentences(subjects: Subjects) -> list[str]:
    """Ten sentences, with their figures.

    Raises:
        ArithmeticError: the figures do not bear a sentence out, bounds and standard errors included.
    """
    told = []
    for sentence in SENTENCES:
        text, true = sentence(subjects)
        if not true:
            raise ArithmeticError(f"this sentence is not true of these figures: {text}")
        told.append(text)
    return told


def tops(found: dict[str, Any]) -> dict[str, float]:
    """Block -> its largest eigenvalue, of those with a positive one."""
    return {block: module["top"][0] for block, module in found["modules"].items() if module["top"][0] > 0.0}


def sharpest(found: dict[str, Any]) -> str:
    """The block with the largest eigenvalue."""
    modules = found["modules"]
    return max(modules, key=lambda block: modules[block]["top"][0])


def holder(found: dict[str, Any]) -> str:
    """The block with most of the full model's top direction."""
    modules = found["modules"]
    return max(modules, key=lambda block: modules[block]["share"][0])


def excess(found: dict[str, Any]) -> float:
    """The full model's largest eigenvalue over that of its sharpest block."""
    return float(found["examined"][FULL]["top"][0] / max(tops(found).values()))


def spread(values: list[float]) -> str:
    """Least and largest, "1.2 to 3.4"."""
    return f"{number(min(values), 2)} to {number(max(values), 2)}"


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, of numbers without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


SENTENCES: list[Callable[[Subjects], tuple[str, bool]]] = []
