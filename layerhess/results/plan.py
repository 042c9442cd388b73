"""Which weight gets which option, what that costs and saves, and what it was held against, as plain records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.estimates import Floats
from layerhess.linalg.numbers import counted, number, with_bound
from layerhess.results.data_frame import data_frame
from layerhess.results.options import Option

if TYPE_CHECKING:
    import pandas as pd

CRITERIA = ("measured", "curvature", "gauss_newton", "hawq_v2", "hawq", "fisher")
COUPLINGS = ("outputs", "hessian", "none")
PLAN = "plan"  # the name of what was chosen, among what was measured
SURE = 2.0  # standard errors of a paired difference, from which on two plans are told apart
NAN = math.nan


@dataclass(frozen=True)
class PlannedWeight:
    """A weight tensor that a plan decides on.

    Attributes:
        name: its first name in ``named_parameters()``. aliases: its other names, of tied weights. shape, dtype
            ("float32"), numel. module: the type of the module that holds it, such as "Linear".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    module: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanRow:
    """One option for one weight, everything else as it is.

    Attributes:
        layer: the weight's name. option: what is done to it. measured, measured_error: the increase of the mean loss,
            and its standard error over the examples (paired). kl, kl_error: KL divergence of the model's predictions
            from those of the float model, likewise; NaN where the loss is none of probabilities.
        predicted_curvature: g'd + d'Hd / 2, d the change of the weight. predicted_gauss_newton: the same with G for H.
            predicted_hawq_v2: mean trace times |d|^2. predicted_hawq: largest eigenvalue times |d|^2.
            predicted_fisher: d'Fd / 2 with the empirical Fisher F. NaN where it was not computed.
        bits: per weight, without scales. size_bytes: with scales of 16 bits. change: |d| over |w|.
        allowed: may be chosen. why_not: the reason if not.
    """

    layer: str
    option: Option
    measured: float
    measured_error: float
    kl: float = NAN
    kl_error: float = NAN
    predicted_curvature: float = NAN
    predicted_gauss_newton: float = NAN
    predicted_hawq_v2: float = NAN
    predicted_hawq: float = NAN
    predicted_fisher: float = NAN
    bits: float = NAN
    size_bytes: float = NAN
    change: float = NAN
    allowed: bool = True
    why_not: str = ""


@dataclass(frozen=True)
class Score:
    """A number over examples and its standard error (NaN where it has none)."""

    value: float
    error: float = NAN

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, repr=False)
class MeasuredPlan(Described):
    """One choice for all weights, applied to the model and measured.

    Attributes:
        name: "plan", "uniform w4", "hawq_v2", "measured", "random 7", ... choice: weight name -> option.
        measured, measured_error: the increase of the mean loss on the calibration data, with its standard error over
            examples (paired). predicted: the same by the loss at the sum of the changes of the outputs, or by
            the quadratic where outputs were not kept. predicted_block: the sum over layers, without interactions.
        mean_bits: per weight, scales not counted. size_bytes: scales counted. fits: it meets the budget.
        held_out, held_out_metric, metric: increase of the loss on held-out data, the metric there, and the metric on
            the calibration data where no held-out data is given; None where not asked for.
        against_plan: paired difference of the held-out loss (else of the calibration loss) from the plan's, positive
            where the plan is better.
        failed: why it could not be measured; "" if it was.
    """

    name: str
    choice: Mapping[str, Option]
    measured: float
    measured_error: float
    predicted: float = NAN
    predicted_block: float = NAN
    mean_bits: float = NAN
    size_bytes: float = NAN
    fits: bool = True
    held_out: Score | None = None
    metric: Score | None = None
    against_plan: Score | None = None
    failed: str = ""

    def _describe(self) -> Description:
        return Description(
            f"{self.name}: loss {self.measured:+.4g} ± {number(self.measured_error, 2)}, "
            f"{self.mean_bits:.3g} bits a weight",
            (f"predicted {self.predicted:+.4g}, {'fits' if self.fits else 'DOES NOT FIT'} the budget",),
        )


@dataclass(frozen=True)
class ForwardCounts:
    """What a plan cost, in forward passes over the calibration data (products: in gradients of it).

    Attributes:
        measuring: of the float model and of every (layer, option). portfolio: of candidate plans and the frontier.
            verification: of baselines and random plans, held-out data not counted. curvature: gradients' worth of the
            curvature columns and checks.
    """

    measuring: float = 0.0
    portfolio: float = 0.0
    verification: float = 0.0
    curvature: float = 0.0


@dataclass(frozen=True, repr=False)
class PlanRecord(Described):
    """A plan: an option for every planned weight, and what it was held against.

    Attributes:
        choice: weight name -> option, in model order. weights: what is planned. options: what could be chosen.
        rows: one for each (layer, option), see :class:`PlanRow`.
        budget: as it was asked for, in words. mean_bits, size_bytes: of the choice; size_bytes counts planned weights
            and their scales. float_bytes: the same weights in the model's dtype.
        loss: the float model's mean loss. predicted: increase of the loss by the plan, with interactions.
            predicted_block: the sum over layers, without. measured, measured_error: as measured, with its standard
            error over examples.
        interactions: (L, L) for the chosen options, in the order of ``weights``: the share of the predicted increase
            that a pair of layers has together beyond their own; symmetric, zero diagonal, all entries sum to it. NaN
            where unknown.
        criterion, couplings: by what single layers and pairs were judged. found_by: the candidate that was best.
        candidates: the measured portfolio, by name. baselines: uniform bits, HAWQ-V2 and others, by name.
            frontier: the Pareto frontier of size against measured increase. random: random plans of the verification.
        gap: relative distance of the search's objective from a proven bound; NaN where nothing is proven.
            optimal: the choice is proven best for its problem (additive or quadratic). gap_of: which problem that is.
        metric: the plan's on held-out data if given, else on the calibration data; metric_float: of the float model;
            metric_name.
        verdict: a sentence on the plan against uniform bits. warnings: sentences.
        counts: see :class:`ForwardCounts`. settings: what was asked for, versions, as JSON types.
    """

    choice: Mapping[str, Option]
    weights: tuple[PlannedWeight, ...]
    options: tuple[Option, ...]
    rows: tuple[PlanRow, ...]
    budget: str
    mean_bits: float
    size_bytes: float
    float_bytes: float
    loss: float
    predicted: float
    predicted_block: float
    measured: float
    measured_error: float
    interactions: Floats
    criterion: str = "measured"
    couplings: str = "outputs"
    found_by: str = ""
    candidates: Mapping[str, MeasuredPlan] = field(default_factory=dict)
    baselines: Mapping[str, MeasuredPlan] = field(default_factory=dict)
    frontier: tuple[MeasuredPlan, ...] = ()
    random: tuple[MeasuredPlan, ...] = ()
    gap: float = NAN
    optimal: bool = False
    gap_of: str = ""
    held_out_loss: Score | None = None
    metric: Score | None = None
    metric_float: Score | None = None
    metric_name: str = ""
    verdict: str = ""
    warnings: tuple[str, ...] = ()
    counts: ForwardCounts = field(default_factory=ForwardCounts)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """A row for each (layer, option): the fields of :class:`PlanRow`, options by name, and whether it is chosen.

        Raises:
            InputError: pandas is not installed.
        """
        columns = [*PlanRow.__dataclass_fields__, "chosen"]
        rows = [
            {
                **{name: getattr(row, name) for name in columns[:-1]},
                "option": row.option.name,
                "chosen": self.choice.get(row.layer) == row.option,
            }
            for row in self.rows
        ]
        return data_frame(rows, columns, "Plan.to_frame", "read .rows")

    def _describe(self) -> Description:
        shown = list(self.choice.items())[:20]
        by_layer = {(row.layer, row.option): row for row in self.rows}
        cells = []
        for layer, option in shown:
            row = by_layer.get((layer, option))
            increase = "" if row is None else with_bound(row.measured, row.measured_error)
            cells.append((called(layer), option.name, increase))
        return Description(
            f"Plan for {counted(len(self.choice), 'layer')}: {self.mean_bits:.3g} bits a weight, "
            f"{self.size_bytes / 1e6:.3g} MB instead of {self.float_bytes / 1e6:.3g}",
            (
                f"loss {number(self.loss)}, increase {self.measured:+.4g} ± {number(self.measured_error, 2)} measured; "
                f"predicted {self.predicted:+.4g}",
                self.verdict,
                *self.warnings[:2],
            ),
            columns=("layer", "option", "loss increase alone"),
            rows=tuple(cells),
            more=len(self.choice) - len(shown),
        )
