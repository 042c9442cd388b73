"""How well predicted costs rank the ways of answering a question: the place for it, to be filled by a cost model."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import spearmanr

__all__ = ["Way", "rank_correlation", "ways"]


@dataclass(frozen=True)
class Way:
    """One way of answering one question: what the library predicts that it costs, and what it took, in gradients."""

    question: str
    way: str
    predicted: float
    measured: float


def ways() -> list[Way] | None:
    """Predicted and measured costs of every way of every workload; None while layerhess predicts none."""
    return None


def rank_correlation(found: list[Way]) -> float:
    """Spearman's, over all ways of all questions."""
    return float(spearmanr([way.predicted for way in found], [way.measured for way in found]).statistic)
