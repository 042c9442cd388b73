"""The headline facts of every display: did all converge, the largest stable step, the most negative eigenvalue.

The sentences are made here only, so that the terminal, the notebook and the report agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from layerhess.linalg.bounds import SMALLEST_NORM
from layerhess.linalg.described import plain
from layerhess.results.spectrum import FULL_NAME, AnalysisRecord, Spectrum
from layerhess.show.numbers import count, counted, duration, number, share, with_bound, with_reach

LEAST_GRADIENT = 1e-3  # seconds, from which on a cost is told in gradients


@dataclass(frozen=True)
class Names:
    """How an operator is named, and what its eigenvalues do not mean.

    Attributes:
        full, block: symbols. words: a noun. product: what a product with it is called.
        caveat: a sentence on what it is not; empty for the Hessian, whose eigenvalues are the loss's curvature.
    """

    full: str
    block: str
    words: str
    product: str = "matrix-vector product"
    caveat: str = ""


_NOT_CURVATURE = "its eigenvalues limit no step size, and none of them says whether these weights are at a minimum."
_NAMES = {
    "hessian": Names("H", "H_bb", "Hessian", "Hessian-vector product"),
    "gauss_newton": Names(
        "G", "G_bb", "generalised Gauss-Newton matrix", "Gauss-Newton-vector product",
        f"G takes the network as linear in its weights and the loss in its output as it is: {_NOT_CURVATURE}",
    ),
    "empirical_fisher": Names(
        "F", "F_bb", "empirical Fisher matrix", "Fisher-vector product",
        f"F is made of the gradients of single items, not of second derivatives: {_NOT_CURVATURE}",
    ),
    "empirical_fisher:token": Names(
        "F", "F_bb", "empirical Fisher matrix of tokens", "Fisher-vector product",
        f"F is made of the gradients of single tokens, not of second derivatives: {_NOT_CURVATURE}",
    ),
}  # fmt: skip


def operator_names(operator: str) -> Names:
    """Symbols and words for an operator; an unknown one keeps its own name."""
    return _NAMES.get(operator, Names(operator, f"{operator}_bb", operator))


def names_of(analysis: AnalysisRecord) -> Names:
    """How the operator of an analysis is named."""
    return operator_names(operator_of(analysis))


def condition(analysis: AnalysisRecord) -> str:
    """What the operator is under, to follow its name: ", with stopped gradients held constant", or ""."""
    constant = analysis.settings.get("stop_gradients") == "constant"
    return ", with stopped gradients held constant" if constant else ""


def operator_of(analysis: AnalysisRecord) -> str:
    """The operator whose eigenvalues an analysis holds."""
    return next((s.operator for s in analysis.spectra()), str(analysis.settings.get("operator", "hessian")))


@dataclass(frozen=True)
class Fact:
    """One headline number.

    Attributes:
        value: the number as text, for example "0.164"; "none" or "unknown" where there is none.
        sentence: what it is, which matrix it belongs to and how far to trust it.
    """

    value: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """Whether everything converged.

    Attributes:
        good: True when it did and nothing was refused or cut short.
        headline: a few words.
        details: one sentence for each unfinished spectrum, for each reason why estimates are unfinished, and for an
            early stop.
    """

    good: bool
    headline: str
    details: tuple[str, ...]


def verdict(analysis: AnalysisRecord) -> Verdict:
    """Whether every number asked for has converged; if not, which have not, and what was not begun."""
    spectra = analysis.spectra()
    details = [f"The analysis stopped early: {analysis.partial.rstrip('.')}."] if analysis.partial else []
    if missing := not_begun(analysis):
        details.append(f"Asked for, and not begun when it stopped: {', '.join(missing)}.")
    details += [f"{_called(s)}: {s.status.rstrip('.')}." for s in spectra if not s.solved]
    alike: dict[str, list[str]] = {}
    for spectrum in spectra:
        for sentence in _unfinished(spectrum).values():
            alike.setdefault(sentence.rstrip("."), []).append(_called(spectrum))
    details += [f"{some(names)}: {sentence}." for sentence, names in alike.items()]
    if not details:
        return Verdict(True, f"Everything converged: {len(spectra)} of {len(spectra)} spectra", ())
    refused = sum(s.status.startswith("refused") for s in spectra)
    unsolved = sum(not s.solved for s in spectra) - refused
    counts = {"spectra NOT CONVERGED": unsolved, "spectra REFUSED": refused}
    for kind, words in _UNFINISHED.items():
        counts[words] = sum(kind in _unfinished(s) for s in spectra)
    parts = [f"{number} of {len(spectra)} {words}" for words, number in counts.items() if number]
    return Verdict(False, ", ".join(parts) or "STOPPED EARLY", tuple(details))


_UNFINISHED = {
    "trace": "traces NOT CONVERGED",
    "diagonal": "diagonals NOT CONVERGED",
    "density": "densities STOPPED EARLY",
}


def _unfinished(spectrum: Spectrum) -> dict[str, str]:
    """The estimates that missed their goals: a key of ``_UNFINISHED`` -> why, from the estimate's status."""
    made = {}
    if spectrum.trace is not None and not spectrum.trace.converged:
        made["trace"] = f"trace not converged: {spectrum.trace.status}"
    if spectrum.diagonal is not None and not spectrum.diagonal.ok:
        made["diagonal"] = f"diagonal not converged: {spectrum.diagonal.status}"
    if spectrum.density is not None and not spectrum.density.finished:
        made["density"] = f"density {spectrum.density.status}"
    return made


def not_begun(analysis: AnalysisRecord) -> list[str]:
    """What an analysis that stopped early had not begun."""
    if not analysis.partial:
        return []
    spectra = analysis.spectra()
    there = {
        "trace": any(s.trace is not None for s in spectra),
        "diagonal": any(s.diagonal is not None for s in spectra),
        "density": any(s.density is not None for s in spectra),
        "coupling": analysis.coupling is not None,
        "sampling": any(math.isfinite(error) for s in spectra for error in s.sampling_errors),
    }
    words = {
        "trace": "traces",
        "diagonal": "diagonals",
        "density": "densities",
        "coupling": "couplings",
        "sampling": "sampling errors",
    }
    return [words[kind] for kind, found in there.items() if analysis.settings.get(kind) and not found]


def _called(spectrum: Spectrum) -> str:
    return "full model" if spectrum.name == FULL_NAME else plain(spectrum.name)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of a list of names, and how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def largest(analysis: AnalysisRecord) -> Spectrum | None:
    """The spectrum whose largest eigenvalue is reported: the full model's, else the largest block's."""
    if analysis.full is not None and analysis.full.top is not None:
        return analysis.full
    candidates = [s for s in analysis.blocks.values() if s.top is not None]
    return max(candidates, key=lambda s: s.top[0] if s.top else -math.inf) if candidates else None


def lowest(analysis: AnalysisRecord) -> Spectrum | None:
    """The spectrum with the most negative eigenvalue: the full model's, else the lowest block's."""
    if analysis.full is not None and analysis.full.bottom is not None:
        return analysis.full
    candidates = [s for s in analysis.blocks.values() if s.bottom is not None]
    return min(candidates, key=lambda s: s.bottom[0] if s.bottom else math.inf) if candidates else None


def stable_step(analysis: AnalysisRecord) -> Fact:
    """2/lambda_max: the largest stable step of plain gradient descent on this loss, near these weights.

    From a converged eigenvalue, or as far as is known: what has not converged lies in an interval.
    """
    spectrum = largest(analysis)
    if spectrum is None or spectrum.top is None:
        if any(not s.solved for s in analysis.spectra()):
            return Fact("unknown", "No largest eigenvalue is known: see what is not done.")
        return Fact("unknown", "No largest eigenvalue was asked for; ask for top=1.")
    value, bound = spectrum.top
    names = operator_names(spectrum.operator)
    full = spectrum is analysis.full
    open_sign = value <= 0.0 < spectrum.highest and value + bound > 0.0 != bound
    if not spectrum.settled("top") or (open_sign and bound > SMALLEST_NORM):
        return _step_so_far(analysis, spectrum)
    if value <= 0:
        return Fact("no limit", f"No positive curvature was found: lambda_max is {with_bound(value, bound)}.")
    shown = with_reach(value, bound, spectrum.highest)
    if full:
        return Fact(
            number(2 / value),
            f"The largest stable step of plain gradient descent: 2/lambda_max({names.full}), with lambda_max of the "
            f"full {names.words} = {shown}.",
        )
    return Fact(
        f"≤ {number(2 / value)}",
        f"The largest stable step of plain gradient descent is at most this: 2/lambda_max({names.block}) of the block "
        f"{plain(spectrum.name)} = 2 / ({shown}). There is no result for the full {names.words}; its largest "
        "eigenvalue is at least as large.",
    )


def _step_so_far(analysis: AnalysisRecord, spectrum: Spectrum) -> Fact:
    """What is known of 2/lambda_max where lambda_max has not converged, or its sign is open."""
    names = operator_names(spectrum.operator)
    least, source = max((s.top[0] - s.top[1], _called(s)) for s in analysis.spectra() if s.top is not None)
    most = spectrum.highest if spectrum is analysis.full else math.inf
    of = f"the full {names.words}" if spectrum is analysis.full else f"the block {plain(spectrum.name)}"
    end = f"at most {number(most)}" if math.isfinite(most) else "not bounded above yet"
    why = "has not converged" if not spectrum.settled("top") else "may be positive or not"
    sentence = f"lambda_max of {of} {why}: it is at least {number(least)} (from {source}) and {end}."
    if least <= 0.0:
        return Fact(f"≥ {number(2 / most)}" if 0.0 < most < math.inf else "unknown", sentence)
    if math.isfinite(most):
        return Fact(f"{number(2 / most)} to {number(2 / least)}", sentence)
    return Fact(f"≤ {number(2 / least)}", sentence)


def most_negative(analysis: AnalysisRecord) -> Fact:
    """The smallest eigenvalue, if it is negative; it says whether these weights are at a minimum.

    From a converged eigenvalue, or as far as is known: no block can lie below the whole.
    """
    spectrum = lowest(analysis)
    if spectrum is None or spectrum.bottom is None:
        return Fact("not asked for", "No smallest eigenvalue was asked for; ask for bottom=1.")
    value, bound = spectrum.bottom
    names = operator_names(spectrum.operator)
    full = spectrum is analysis.full
    of = f"the full {names.words} {names.full}" if full else f"{names.block} of the block {plain(spectrum.name)}"
    most, source = min((s.bottom[0] + s.bottom[1], _called(s)) for s in analysis.spectra() if s.bottom is not None)
    # Without the full model any block may hold the smallest one.
    among = [spectrum] if full else list(analysis.blocks.values())
    lost = [s for s in analysis.spectra() if s.status.startswith("refused")]
    open_ones = [*(s for s in among if s.bottom and not s.settled("bottom")), *([] if full else lost)]
    if open_ones or most < min(0.0, value - bound):
        unsettled = some([_called(s) for s in open_ones])
        why = f"not converged: {unsettled}" if open_ones else f"{of} has converged to {with_bound(value, bound)}"
        deep = spectrum.deepest
        rest = f" and at least {number(deep)}" if full and math.isfinite(deep) and deep <= most else ""
        sentence = f"The smallest eigenvalue is at most {number(most)} (from {source}){rest}; {why}."
        return Fact(f"≤ {number(most)}" if most < 0.0 else "unknown", sentence)
    shown = with_reach(value, bound, spectrum.deepest)
    if value >= 0 or value + bound > 0:
        return Fact("none found", f"The smallest eigenvalue of {of} is {shown}.")
    tail = "" if full else f" The full {names.words}'s smallest eigenvalue is at most this."
    return Fact(number(value), f"The smallest eigenvalue of {of} is {shown}.{tail}")


def cost(analysis: AnalysisRecord) -> str:
    """The time by phase, and what the solvers' products would have cost separately; "" if unknown.

    In gradients, which other machines can be compared by; in seconds where a gradient takes less than a millisecond:
    then Python's own time is most of everything, and a number of gradients says nothing.
    """
    spent = analysis.cost
    if spent is None:
        return ""
    if spent.gradient_seconds < LEAST_GRADIENT:
        seconds = {phase: size * spent.gradient_seconds for phase, size in spent.gradients.items()}
        parts = [f"{phase} {duration(size)}" for phase, size in seconds.items() if size >= 0.005]
        return f"Time: {duration(sum(seconds.values()))}" + (f" ({', '.join(parts)})." if parts else ".")
    parts = [f"{phase} {number(size, 2)}" for phase, size in spent.gradients.items() if size >= 0.05]
    text = (
        f"In gradients over the same data (about {duration(spent.gradient_seconds)} each): {number(spent.total, 3)} "
        f"({', '.join(parts)})"
    )
    # Solvers and estimators share their passes: with both, a figure for the solvers alone would mislead.
    estimated = analysis.coupling is not None or any(s.trace or s.diagonal or s.density for s in analysis.spectra())
    if not spent.one_by_one or estimated:
        return f"{text}."
    return f"{text}; exact products block by block would have cost about {number(spent.one_by_one, 2)} for the solvers."


def examples(analysis: AnalysisRecord) -> str:
    """How much data the loss was taken over, in words."""
    batches = counted(analysis.batches, "batch", "batches")
    if not analysis.examples:
        return f"{batches}, {count(analysis.loss_count)} terms"
    text = f"{counted(analysis.examples, 'example')} in {batches}"
    return text if analysis.loss_count in (0, analysis.examples) else f"{text}, {count(analysis.loss_count)} terms"


def missed_overall(analysis: AnalysisRecord) -> str:
    """Sentences on the chance that a larger eigenvalue was missed anywhere; empty where none was looked for."""
    spectra = analysis.spectra()
    bounded = [s for s in spectra if not s.complete and math.isfinite(s.missed_factor)]
    sentences = []
    if bounded:
        worst = max(bounded, key=lambda s: s.missed_factor)
        chance = share(max(s.missed_probability for s in bounded))
        where = "each spectrum" if len(bounded) == len(spectra) else f"{len(bounded)} of {len(spectra)} spectra"
        sentences.append(
            f"In {where} a further eigenvalue above {number(worst.missed_factor, 3)} times lambda_max is excluded, "
            f"except with a probability of at most {chance} (worst: {_called(worst)})."
        )
        if analysis.settings.get("copies") == "unchecked":
            sentences.append("Further copies of the eigenvalues found were not looked for.")
    if complete := sum(s.complete for s in spectra):
        sentences.append(f"Of {complete} the whole spectrum was computed: nothing can be missing there.")
    if open_ends := sum(s.missed_factor == math.inf for s in spectra):
        sentences.append(f"In {open_ends} nothing can be excluded.")
    return " ".join(sentences)


def interlacing(analysis: AnalysisRecord) -> str:
    """The full model compared with the blocks: Cauchy interlacing in words, with this model's numbers."""
    if analysis.full is None:
        return ""
    names = operator_names(analysis.full.operator)
    parts = []
    tops = {name: s.top for name, s in analysis.blocks.items() if s.top is not None and s.settled("top")}
    bottoms = {n: s.bottom for n, s in analysis.blocks.items() if s.bottom is not None and s.settled("bottom")}
    if tops and analysis.full.top is not None and analysis.full.settled("top"):
        name = max(tops, key=lambda key: tops[key][0])
        value, bound = tops[name]
        ratio = analysis.full.top[0] / value if value > 0 else math.nan
        times = f", {number(ratio, 3)} times that" if math.isfinite(ratio) and number(ratio, 3) != "1" else ""
        parts.append(
            f"The largest block eigenvalue is {with_bound(value, bound)} ({names.block} of {plain(name)}); the full "
            f"{names.words} {names.full} reaches {with_bound(*analysis.full.top)}{times}."
        )
    if bottoms and analysis.full.bottom is not None and analysis.full.settled("bottom"):
        name = min(bottoms, key=lambda key: bottoms[key][0])
        parts.append(
            f"The smallest block eigenvalue is {with_bound(*bottoms[name])} ({names.block} of {plain(name)}); "
            f"{names.full} goes down to {with_bound(*analysis.full.bottom)}."
        )
    if not parts:
        return ""
    rule = (
        f"Each {names.block} is a diagonal block of {names.full}, so none of its eigenvalues can lie outside the range "
        f"of {names.full}'s (Cauchy interlacing); what {names.full} has beyond the blocks comes from the coupling "
        "between layers."
    )
    return " ".join([rule, *parts])
