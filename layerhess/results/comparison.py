"""Two analyses side by side: by how much each block's curvature differs, and whether that is more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from layerhess.linalg.described import MOST_ROWS, Described, Description, called
from layerhess.linalg.estimates import Floats
from layerhess.linalg.numbers import counted, number, rounded_up
from layerhess.linalg.significance import adjusted, two_sided, welch
from layerhess.linalg.stochastic.divergence import divergences
from layerhess.results.eigenspaces import Eigenspaces, compared_spaces
from layerhess.results.record import SampledGroups
from layerhess.results.spectrum import FULL_NAME, AnalysisRecord, Spectrum

RATE = 0.05  # the false discovery rate over blocks and the full model
FEWEST_FREEDOM = 3.0  # of a standard error from groups whose number was not saved: four at least
NAN = math.nan


@dataclass(frozen=True, repr=False)
class BlockComparison(Described):
    """One block in two analyses; "log ratio" is log(second / first), so 0.1 is about 10 % more.

    Attributes:
        name: of the block; "(full)" for the whole model.
        first, second: the largest eigenvalue in either; NaN where it is not known or has not converged.
        log_ratio: of these; NaN where either is unknown, has not converged, or is not positive.
        error_bound: of ``log_ratio``, from both error bounds: what the computation leaves open.
        standard_error: of ``log_ratio`` with respect to the data; NaN where either has no sampling errors.
        freedom: degrees of freedom of that (groups less one; Welch's where there are two sets of them).
        paired: both were measured on the same groups of examples, so that what examples do to both has cancelled.
        p_value: adjusted for the number of blocks, see :func:`layerhess.linalg.significance.adjusted`; NaN where there
            is no standard error.
        significant: the ratio differs from 1 by more than its error bound and chance; false discovery rate 5 % over
            all blocks and the full model.
        scale_free_log_ratio: of lambda_max ||W||^2, which does not change where a layer is scaled and the next one (or
            a normalisation) undoes it. scale_free_significant: the same test of it.
        angles: (k,) principal angles between the spaces of the k first eigenvectors, radians, ascending; one NaN where
            these are not determined. angle_bound: how far each may be off. overlap: mean squared cosine, 1 for the
            same space, about k / numel for unrelated ones. spaces: a sentence on k, or why there are none.
        divergence: Jensen-Shannon distance between the spectral densities, 0 to 1; divergence_error: its error. NaN
            where either is missing or was stopped early.
        status: "different", "not distinguished", "within bounds", "no standard error" or "not compared",
            followed by ": " and a sentence where there is more to say.
        finished: False where a largest eigenvalue has not converged or was refused.
    """

    name: str
    first: float
    second: float
    log_ratio: float
    error_bound: float
    standard_error: float
    freedom: float
    paired: bool
    p_value: float
    significant: bool
    scale_free_log_ratio: float
    scale_free_significant: bool
    overlap: float
    angles: Floats
    angle_bound: float
    spaces: str
    divergence: float
    divergence_error: float
    status: str
    finished: bool = True

    def _describe(self) -> Description:
        of = "the full model" if self.name == "(full)" else called(self.name)
        how = "paired" if self.paired else "not paired"
        error = (
            "no standard error"
            if math.isnan(self.standard_error)
            else f"standard error {number(self.standard_error, 2)}"
        )
        facts = [
            f"lambda_max {number(self.first)} and {number(self.second)}",
            f"status: {self.status}",
            f"of lambda_max ||W||^2: log ratio {number(self.scale_free_log_ratio, 3)}",
        ]
        if not math.isnan(self.overlap):
            facts.append(f"overlap of eigenspaces {number(self.overlap, 3)}; {self.spaces}")
        return Description(
            f"Comparison of {of}: log ratio {number(self.log_ratio, 3)} ± {rounded_up(self.error_bound)} (bound), "
            f"{error} ({how})",
            tuple(facts),
            "" if self.finished else "NOT CONVERGED",
        )


class ComparedBlocks(Described, dict[str, BlockComparison]):
    """Block name -> :class:`BlockComparison`, in model order."""

    def _describe(self) -> Description:
        different = [called(name, 30) for name, block in self.items() if block.significant]
        shown = ", ".join(different[:4]) + (" ..." if len(different) > 4 else "")
        return Description(
            f"{counted(len(self), 'block')} compared, {len(different)} different{': ' if shown else ''}{shown}",
            ("[name] gives one: " + ", ".join(repr(called(name, 30)) for name in list(self)[:3]),) if self else (),
            "" if all(block.finished for block in self.values()) else "NOT CONVERGED",
            ("block", "log ratio", "s.e.", "status"),
            tuple(
                (called(b.name), number(b.log_ratio, 3), number(b.standard_error, 2), b.status.split(":")[0])
                for b in list(self.values())[:MOST_ROWS]
            ),
            max(0, len(self) - MOST_ROWS),
        )


@dataclass(frozen=True)
class ComparisonRecord:
    """Two analyses block by block.

    Attributes:
        first, second: what they are called. operator: the matrix.
        blocks: name -> :class:`BlockComparison`, in model order; the full model last, as "(full)".
        only_first, only_second: blocks that the other has not.
        rate: the false discovery rate of ``significant``. notes: plain sentences.
        finished: False where a block is not, or an analysis was stopped early.
    """

    first: str
    second: str
    operator: str
    blocks: dict[str, BlockComparison]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...]
    finished: bool
    rate: float = RATE

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", ComparedBlocks(self.blocks))


def spectra_of(analysis: AnalysisRecord) -> dict[str, Spectrum]:
    """All spectra by name, the full model's last."""
    return {spectrum.name: spectrum for spectrum in analysis.spectra()}


def compared(first: AnalysisRecord, second: AnalysisRecord, names: tuple[str, str]) -> ComparisonRecord:
    """Compare two analyses of the same operator that have a block in common.

    Args:
        names: what they are called.
    """
    own, other = spectra_of(first), spectra_of(second)
    shared = first.groups if same_groups(first, second) else None
    pairs = {name: _compared(spectrum, other[name], first, second) for name, spectrum in own.items() if name in other}
    return ComparisonRecord(
        *names,
        operator=next(iter(own.values())).operator,
        blocks=_judged(pairs, {name: (own[name], other[name]) for name in pairs}),
        only_first=tuple(name for name in own if name not in other),
        only_second=tuple(name for name in other if name not in own),
        notes=tuple(_notes(first, second, names, shared)),
        finished=not (first.partial or second.partial) and all(block.finished for block in pairs.values()),
    )


def same_groups(first: AnalysisRecord, second: AnalysisRecord) -> bool:
    """Whether sampling errors of both come from the same groups of examples."""
    if first.groups is None or second.groups is None:
        return False
    same = first.groups.fingerprint == second.groups.fingerprint and bool(first.groups.fingerprint)
    return same and len(first.groups.counts) == len(second.groups.counts)


def _compared(a: Spectrum, b: Spectrum, first: AnalysisRecord, second: AnalysisRecord) -> BlockComparison:
    """One block, before its difference is judged beside the others'."""
    values, why = (_value(a), _value(b)), _obstacle(a, b)
    finished = all(s.solved if s.top is None else s.settled("top") for s in (a, b))
    log_ratio, bound, error, freedom, paired = NAN, NAN, NAN, NAN, False
    if not why:
        log_ratio = math.log(values[1] / values[0])
        bound = _bound(a, b, log_ratio)
        error, freedom, paired = _sampling(a, b, first, second)
    norms = a.weight_norm_squared, b.weight_norm_squared
    scaled = all(norm > 0.0 and math.isfinite(norm) for norm in norms)
    spaces: Eigenspaces = compared_spaces(a, b)
    divergence, divergence_error = _divergence(a, b)
    return BlockComparison(
        name=a.name,
        first=values[0],
        second=values[1],
        log_ratio=log_ratio,
        error_bound=bound,
        standard_error=error,
        freedom=freedom,
        paired=paired,
        p_value=NAN,
        significant=False,
        scale_free_log_ratio=log_ratio + math.log(norms[1] / norms[0]) if scaled else NAN,
        scale_free_significant=False,
        overlap=spaces.overlap,
        angles=spaces.angles,
        angle_bound=spaces.bound,
        spaces=spaces.status,
        divergence=divergence,
        divergence_error=divergence_error,
        status=f"not compared: {why}" if why else "",
        finished=finished,
    )


def _value(spectrum: Spectrum) -> float:
    return spectrum.top[0] if spectrum.top is not None and spectrum.settled("top") else NAN


def _obstacle(a: Spectrum, b: Spectrum) -> str:
    """Why there is no log ratio, in words; "" where there is one."""
    for place, spectrum in (("first", a), ("second", b)):
        if spectrum.status.startswith("refused"):
            return f"it was refused in the {place}"
        if spectrum.top is None:
            return f"the {place} has no largest eigenvalue"
        if not spectrum.settled("top"):
            return f"it has not converged in the {place} ({spectrum.status})"
    zero = [place for place, s in (("first", a), ("second", b)) if s.status.startswith("zero")]
    if zero:
        return f"its curvature is zero in {'both' if len(zero) == 2 else f'the {zero[0]}'}"
    low = [place for place, s in (("first", a), ("second", b)) if not s.top or s.top[0] <= 0.0]
    return f"its largest eigenvalue is not positive in {'both' if len(low) == 2 else f'the {low[0]}'}" if low else ""


def _bound(a: Spectrum, b: Spectrum, log_ratio: float) -> float:
    """How far the log ratio may be off, from the error bounds of both."""
    (x, r), (y, s) = a.top or (NAN, NAN), b.top or (NAN, NAN)
    if r >= x or s >= y:
        return math.inf
    return max(math.log((y + s) / (x - r)) - log_ratio, log_ratio - math.log((y - s) / (x + r)))


def _sampling(a: Spectrum, b: Spectrum, first: AnalysisRecord, second: AnalysisRecord) -> tuple[float, float, bool]:
    """Standard error of the log ratio with respect to the data, its degrees of freedom, and whether it is paired.

    To first order the log of an eigenvalue sum_g s_g / sum_g c_g changes by s_g / sum s - c_g / sum c with group g, s_g
    = v'A_g v. Where groups are the same, what they do to the log ratio is the difference of that; otherwise squares add
    up, which is too much where some examples are in both.
    """
    if "top" not in a.end or "top" not in b.end:
        return NAN, NAN, False
    if same_groups(first, second) and a.sampling_sums.shape[1] and b.sampling_sums.shape[1]:
        assert first.groups is not None and second.groups is not None
        shifts = _influence(b, second.groups) - _influence(a, first.groups)
        groups = len(shifts)
        return math.sqrt(groups / (groups - 1) * float((shifts**2).sum())), groups - 1.0, True
    errors = [float(s.sampling_errors[0] / s.eigenvalues[0]) for s in (a, b)]
    if not all(map(math.isfinite, errors)):
        return NAN, NAN, False
    return math.hypot(*errors), welch(errors, [_freedom(first), _freedom(second)]), False


def _influence(spectrum: Spectrum, groups: SampledGroups) -> Floats:
    sums = spectrum.sampling_sums[0]
    shifts: Floats = sums / sums.sum() - groups.counts / groups.counts.sum()
    return shifts


def _freedom(analysis: AnalysisRecord) -> float:
    return FEWEST_FREEDOM if analysis.groups is None else len(analysis.groups.counts) - 1.0


def _divergence(a: Spectrum, b: Spectrum) -> tuple[float, float]:
    if a.density is None or b.density is None or not (a.density.finished and b.density.finished):
        return NAN, NAN
    distances, errors = divergences([a.density, b.density])
    return float(distances[0, 1]), float(errors[0, 1])


def _judged(
    blocks: dict[str, BlockComparison], spectra: dict[str, tuple[Spectrum, Spectrum]]
) -> dict[str, BlockComparison]:
    """The same with p-values adjusted for their number, and a status."""

    def tested(ratios: list[float]) -> Floats:
        made = [two_sided(r, b.error_bound, b.standard_error, b.freedom) for r, b in zip(ratios, every, strict=True)]
        return adjusted(np.array(made))

    every = list(blocks.values())
    plain = tested([b.log_ratio for b in every])
    free = tested([b.scale_free_log_ratio for b in every])
    return ComparedBlocks(
        (
            b.name,
            replace(
                b,
                p_value=float(p),
                significant=bool(p <= RATE),
                scale_free_significant=bool(q <= RATE),
                status=b.status or _status(b, float(p), *spectra[b.name]),
            ),
        )
        for b, p, q in zip(every, plain, free, strict=True)
    )


def _status(block: BlockComparison, p: float, a: Spectrum, b: Spectrum) -> str:
    if abs(block.log_ratio) <= block.error_bound:
        return "within bounds"
    if math.isnan(block.standard_error):
        return "no standard error: the difference is more than the error bounds, and what chance does is not known"
    if p > RATE:
        return "not distinguished"
    lower, upper = (a, b) if block.log_ratio > 0.0 else (b, a)  # the smaller one may have missed a larger eigenvalue
    reached = upper.top is not None and lower.highest >= upper.top[0] - upper.top[1]
    if reached and lower.missed_probability > 0.0:
        return f"different: unless an eigenvalue was missed, which has a probability of {lower.missed_probability:.0%}"
    return "different"


def _notes(
    first: AnalysisRecord, second: AnalysisRecord, names: tuple[str, str], shared: SampledGroups | None
) -> list[str]:
    """What holds for all blocks."""
    said = []
    without = [name for name, a in zip(names, (first, second), strict=True) if not _sampled(a)]
    if without:
        said.append(
            f"no standard errors: {' and '.join(without)} was made without sampling=True (--sampling), or on too few "
            "examples; nothing is called different"
        )
    elif shared is not None:
        said.append(f"paired: both were measured on the same {len(shared.counts)} groups of examples")
    else:
        said.append("not paired: the groups of examples are not the same, so standard errors add in quadrature")
        if any(a.groups is None for a in (first, second)):
            said.append(
                "one of them at least was saved before groups were kept: nothing can be paired, and four are assumed"
            )
        if first.examples != second.examples and first.examples and second.examples:
            said.append(
                f"{first.examples:,} and {second.examples:,} examples: the largest eigenvalue of fewer examples tends "
                "to be larger, which no standard error shows"
            )
    losses = [a.settings.get("loss") for a in (first, second)]
    if losses[0] != losses[1]:
        said.append(
            f"the losses differ: {losses[0]} and {losses[1]}, so that ratios say nothing about the weights alone"
        )
    if first.total_numel != second.total_numel:
        said.append(f"the models differ: {first.total_numel:,} and {second.total_numel:,} parameters")
    said += [
        f"{name} was stopped early: {a.partial}" for name, a in zip(names, (first, second), strict=True) if a.partial
    ]
    return said


def _sampled(analysis: AnalysisRecord) -> bool:
    return any(bool(np.isfinite(s.sampling_errors).any()) for s in analysis.spectra())


__all__ = ["FULL_NAME", "RATE", "BlockComparison", "ComparisonRecord", "compared", "same_groups", "spectra_of"]
