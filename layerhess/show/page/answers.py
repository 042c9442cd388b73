"""The three answers at the head of the report: which layers are sharp, can I trust it, what follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.bounds import SMALLEST_NORM
from layerhess.results.derived import derive
from layerhess.results.spectrum import FULL_NAME, AnalysisRecord, Spectrum
from layerhess.show import numbers, summary
from layerhess.show.page.layers import value_of

TIE = 2.0  # combined standard errors within which two eigenvalues are a tie
MOST_NAMES = 3  # in a headline
HOLD = 0.7  # of the steepest direction: how few layers hold so much of it?
MOST_DETAILS = 6  # of what is not done, told at the head; the rows tell the rest
GOOD, WARN, WRONG, PLAIN = "good", "warn", "wrong", ""


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a few words, and sentences with the numbers.

    Attributes:
        tone: "good", "warn", "wrong" or "": shown by a sign and a colour.
        key: the element's id.
    """

    key: str
    question: str
    headline: str
    tone: str
    sentences: list[str]


@dataclass(frozen=True)
class Sharpest:
    """The block with the largest eigenvalue, and those that these data cannot tell from it."""

    names: list[str]
    flattest: str
    left_out: int  # blocks that have not converged
    not_asked: int  # and blocks whose largest eigenvalue was not asked for, nor found with the whole spectrum


def sharpest(analysis: AnalysisRecord) -> Sharpest | None:
    """The sharpest blocks of those that have converged; None where none has positive curvature.

    Two blocks tie where their intervals overlap, or where they differ by less than twice the sampling error of the
    difference; the two are taken as independent, which makes ties rather than breaks them where they rise together.
    """
    asked = [s for s in analysis.blocks.values() if s.top is not None or not s.end]
    known = {s.name: s for s in asked if s.top is not None and s.settled("top") and not math.isnan(s.top[0])}
    tops = {name: s.top[0] for name, s in known.items() if s.top is not None and s.top[0] > s.top[1]}
    if not tops:
        return None
    order = sorted(tops, key=lambda name: -tops[name])
    best = known[order[0]]
    tied = [name for name in order if name == best.name or _tie(best, known[name])]
    not_asked = len(analysis.blocks) - len(asked)
    everything = len(known) == len(analysis.blocks) == len(order)  # else the smallest may be one of the others
    flattest = order[-1] if everything and len(order) > len(tied) else ""
    return Sharpest(tied, flattest, len(asked) - len(known), not_asked)


def _tie(best: Spectrum, other: Spectrum) -> bool:
    assert best.top is not None and other.top is not None
    apart = best.top[0] - other.top[0]
    if apart <= best.top[1] + other.top[1]:
        return True
    errors = [float(s.sampling_errors[0]) for s in (best, other)]
    return all(map(math.isfinite, errors)) and apart <= TIE * math.hypot(*errors)


def answers(analysis: AnalysisRecord, found: Sharpest | None) -> list[Answer]:
    """The three answers; each says what it does not know."""
    return [_sharp(analysis, found), _trusted(analysis), _follows(analysis)]


def _sharp(analysis: AnalysisRecord, found: Sharpest | None) -> Answer:
    names = summary.names_of(analysis)
    question = "Which layers have the largest eigenvalues?" if names.caveat else "Which layers are sharp?"
    if found is None:
        known = any(s.top is not None for s in analysis.blocks.values())
        headline = "No layer, as far as is known" if known else "Not asked"
        if any(not s.solved for s in analysis.blocks.values()):
            headline = "Not known yet"
        return Answer("sharp", question, headline, PLAIN, [_zeros(analysis)] if _zeros(analysis) else [])
    shown = [short(name) for name in found.names[:MOST_NAMES]]
    headline = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    if more := len(found.names) - len(shown):
        headline = f"{', '.join(shown)} and {more} more"
    values = [value_of(analysis.blocks[name], "top") for name in found.names[:MOST_NAMES]]
    tied = ": a tie on these data" if len(found.names) > 1 else ""
    said = [f"λmax {' and '.join(values) if len(values) < 3 else ', '.join(values)}{tied}."]
    if found.left_out:
        said.append(f"{numbers.counted(found.left_out, 'layer')} not converged or refused: they may be sharper.")
    if found.not_asked:
        said.append(f"Of {numbers.counted(found.not_asked, 'layer')} no largest eigenvalue was asked for (top=1 does).")
    if held := _held(analysis):
        said.append(held)
    if found.flattest:
        value = analysis.blocks[found.flattest].top
        assert value is not None
        said.append(f"The smallest is that of {short(found.flattest)}, {numbers.number(value[0], 2)}.")
    if zero := _zeros(analysis):
        said.append(zero)
    return Answer("sharp", question, headline, PLAIN, said)


def _zeros(analysis: AnalysisRecord) -> str:
    zero = [s.name for s in analysis.blocks.values() if s.status.startswith("zero")]
    return f"No measurable curvature: {summary.some(zero, 3)}." if zero else ""


def _held(analysis: AnalysisRecord) -> str:
    """The fewest layers that hold most of the whole model's top eigenvector."""
    full = analysis.full
    if full is None or full.top is None or not full.settled("top") or not analysis.full_mass or "top" not in full.end:
        return ""
    parts = {name: part for name, part in analysis.full_mass[0].items() if name in analysis.blocks}
    order = sorted(parts, key=lambda name: -parts[name])
    totals = np.cumsum([parts[name] for name in order])
    count = int((totals < HOLD).sum()) + 1
    if count > len(order):
        return ""
    direction = "top eigenvector" if summary.names_of(analysis).caveat else "steepest direction"
    who = short(order[0]) if count == 1 else f"{count} of {numbers.counted(len(parts), 'layer')}"
    hold = "holds" if count == 1 else "hold"
    return f"{who} {hold} {numbers.share(float(totals[count - 1]))} of the whole model’s {direction}."


def _trusted(analysis: AnalysisRecord) -> Answer:
    question, verdict = "Can I trust it?", summary.verdict(analysis)
    spectra = analysis.spectra()
    data = f"{numbers.counted(analysis.examples, 'example')}" if analysis.examples else "these data"
    failed = [check for check in analysis.checks if not check.passed]
    said = []
    if verdict.good:
        checks = f", all {numbers.count(len(analysis.checks))} checks passed" if analysis.checks and not failed else ""
        said.append(f"{len(spectra)} of {len(spectra)} spectra converged{checks}.")
    else:
        said.append(f"{sum(s.ok for s in spectra)} of {len(spectra)} spectra are done.")
        said += list(verdict.details[:MOST_DETAILS])
        if more := len(verdict.details) - MOST_DETAILS:
            said += [f"{more} more: see the rows marked red."] if more > 0 else []
    if digits := _digits(analysis):
        said.append(digits)
    said.append(_other_data(analysis))
    open_ends = sum(s.missed_factor == math.inf and s.solved for s in spectra)
    if open_ends:
        said.append(f"In {numbers.counted(open_ends, 'spectrum', 'spectra')} a larger eigenvalue is not excluded.")
    if verdict.good:
        return Answer("trust", question, f"Yes, for {'these ' if analysis.examples else ''}{data}", GOOD, said)
    return Answer("trust", question, verdict.headline, WRONG, said)


def _digits(analysis: AnalysisRecord) -> str:
    """To how many digits every converged largest eigenvalue is right."""
    relative = [
        s.top[1] / abs(s.top[0])
        for s in analysis.spectra()
        if s.top is not None and s.settled("top") and abs(s.top[0]) > s.top[1]
    ]
    worst = max(relative, default=math.nan)
    if math.isnan(worst):
        return ""
    which = "Each λmax" if not any(not s.solved for s in analysis.spectra()) else "Each converged λmax"
    right = math.floor(-math.log10(max(worst, 1e-16)))
    return f"{which} is right to {numbers.share(worst) if right < 2 else numbers.counted(right, 'digit')}."


def _other_data(analysis: AnalysisRecord) -> str:
    spectrum = summary.largest(analysis)
    if spectrum is None or spectrum.top is None or not spectrum.end or spectrum.end[0] != "top":
        return "How far other data would move them was not measured (sampling=True does)."
    error = float(spectrum.sampling_errors[0])
    if not math.isfinite(error) or spectrum.top[0] <= 0.0:
        return "How far other data would move them was not measured (sampling=True does)."
    of = "the whole model’s λmax" if spectrum.name == FULL_NAME else f"λmax of {short(spectrum.name)}"
    return f"Other data of the same kind would move {of} by about {numbers.share(error / spectrum.top[0])}."


def _follows(analysis: AnalysisRecord) -> Answer:
    question, names = "What follows?", summary.names_of(analysis)
    coupled = _coupled(analysis)
    if names.caveat:
        said = [f"{names.full} is the {names.words}. {names.caveat}"]
        return Answer("follows", question, "Ranks layers, limits no step", PLAIN, said + coupled)
    step, spectrum = summary.stable_step(analysis), summary.largest(analysis)
    rate = analysis.settings.get("learning_rate")
    if spectrum is None or spectrum.top is None:
        undone = any(not s.solved for s in analysis.spectra())
        headline, tone = ("Not known yet", WRONG) if undone else ("No largest eigenvalue was asked", PLAIN)
        return Answer("follows", question, headline, tone, [step.sentence, *coupled])
    settled = spectrum.settled("top")
    headline, tone = f"Learning rate: {step.value}", PLAIN if settled else WRONG
    said = []
    if settled and spectrum.top[0] > max(spectrum.top[1], SMALLEST_NORM):
        headline = f"Learning rate below {numbers.number(2.0 / spectrum.top[0], 3)}"
        source = (
            "" if spectrum is analysis.full else f", by {short(spectrum.name)} alone; the whole model may need less"
        )
        said.append(f"That is 2/λmax, for plain gradient descent on all data{source}; momentum and noise move it.")
        if rate is not None and spectrum is analysis.full:
            ratio = rate * spectrum.top[0] / 2.0
            tone = WARN if ratio > 1.0 else GOOD
            said.insert(0, f"Yours, {rate:g}, is {numbers.number(ratio, 2)} times that.")
    else:
        said.append(step.sentence)
    return Answer("follows", question, headline, tone, [*said, *_below(analysis), *coupled])


def _below(analysis: AnalysisRecord) -> list[str]:
    """Whether these weights are at a minimum, and the damping that helps."""
    spectrum = summary.lowest(analysis)
    if spectrum is None or spectrum.bottom is None:
        return []
    negative = summary.most_negative(analysis)
    if not spectrum.settled("bottom"):
        return [negative.sentence]
    value, bound = spectrum.bottom
    if value + bound >= 0.0:
        return ["No direction bends downwards."] if spectrum is analysis.full else []
    where = "" if spectrum is analysis.full else f" in {short(spectrum.name)}"
    damping = derive(spectrum).damping.value
    return [
        f"No minimum: the most negative eigenvalue{where} is {numbers.number(value, 3)}; damping from "
        f"{numbers.rounded_up(damping) if damping < 1e-3 else numbers.number(_up(damping), 2)} makes "
        f"{'H' if spectrum is analysis.full else 'that block'} positive."
    ]


def _up(value: float) -> float:
    """Rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit * (1.0 - 1e-12)) * unit


def _coupled(analysis: AnalysisRecord) -> list[str]:
    """How much of the whole the blocks alone leave out."""
    found = analysis.coupling
    if found is None or len(found.blocks) < 2 or math.isnan(found.off_diagonal_share):
        return []
    inside = numbers.share_with_error(1.0 - found.off_diagonal_share, found.share_error)
    symbol = summary.names_of(analysis).full
    whole = not analysis.uncovered and len(found.blocks) == len(analysis.blocks)
    who = "Layers alone hold" if whole else "Among the layers analysed, each alone holds"
    return [f"{who} {inside} of ‖{symbol}‖²; the rest lies between them."]


def short(name: str) -> str:
    """A block's name without the ".weight" that most of them end with, unless a mere number remains.

    >>> short("block1.conv1.weight"), short("0.weight"), short("head.bias"), short("3")
    ('block1.conv1', '0.weight', 'head.bias', 'layer 3')
    """
    brief = name.removesuffix(".weight")
    if any(character.isalpha() for character in brief):
        return brief
    return f"layer {name}" if brief == name else name
