"""Predicts how long an analysis will take, from timed passes over a sample."""

from __future__ import annotations

from collections.abc import Mapping

from layerhess.analysis.arguments import Arguments
from layerhess.analysis.paths.exact import expected_products, goes_dense
from layerhess.analysis.progress import Forecast
from layerhess.checks import SelfCheck
from layerhess.checks.survey import Survey
from layerhess.curvature.data_pass import FULL
from layerhess.linalg.eigen.process import Wanted
from layerhess.objective.blocks import Block

SLOWDOWN = (0.7, 2.2)  # from easy spectra on kept graphs, to hard ones on graphs made again every pass


def forecast(
    surveyed: Survey,
    checked: SelfCheck,
    operators: Mapping[str, Block],
    arguments: Arguments,
    seconds: Mapping[str, float],
) -> Forecast:
    """The expected seconds, shown before the first step.

    Args:
        operators: name -> block, the full model included if it is asked for. seconds: spent so far, by phase.
    """
    size = surveyed.sample_size
    scale = surveyed.examples / size if size else float(surveyed.batches)
    # The first pass is slow and the sample is small: the faster of the two estimates is closer.
    scaled = scale * checked.graph_seconds
    gradient = min(3.0 * seconds["survey"], scaled)
    # A large batch makes products faster by the same factor as gradients.
    saved = gradient / scaled if scaled > 0.0 else 1.0
    per_product = saved * scale * checked.block_seconds / (len(operators) + (not arguments.full))
    wanted = Wanted(top=arguments.top, bottom=arguments.bottom)
    expected = {name: expected_products(block.numel, wanted) for name, block in operators.items()}
    sampled = [b.numel for name, b in operators.items() if name != FULL and not goes_dense(b.numel, wanted)]
    products = sum(expected.values()) + arguments.estimates.expected_products(sampled, arguments.full)
    passes = max(expected.values()) + arguments.estimates.expected_passes
    base = per_product * products + saved * scaled
    remade = saved * scaled * passes
    fixed = seconds["checks"]
    low, high = fixed + SLOWDOWN[0] * base, fixed + SLOWDOWN[1] * base + remade
    return Forecast(
        gradient_seconds=gradient,
        pass_seconds=per_product * len(operators),
        low=low,
        high=high,
        examples=surveyed.examples,
        per_example=(high - fixed) / surveyed.examples if surveyed.examples else 0.0,
    )
