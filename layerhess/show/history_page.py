"""The page of a monitor's history: curves of every layer's largest eigenvalue while a model trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerhess.results.history import STOPPED, History
from layerhess.results.point import Reading
from layerhess.results.spectrum import FULL_NAME
from layerhess.show import numbers
from layerhess.show.page.answers import GOOD, PLAIN, WARN, WRONG, Answer, short
from layerhess.show.page.curves import curves, threshold
from layerhess.show.page.templates import setting, sign, template

GREW = 1.1  # times: what is called a rise or a fall of the sharpness


@dataclass(frozen=True)
class Row:
    """One layer: texts, numbers to sort by, and a sentence behind it."""

    block: str
    name: str
    first: str
    largest: str
    last: str
    keys: dict[str, float]
    details: str
    whole: bool


def as_html(history: History) -> str:
    """The history as one self-contained HTML document, readable in light and in dark.

    Args:
        history: names and sentences in it may contain anything, they are escaped.
    """
    points = history.points
    charts = []
    if (all_blocks := curves(history)) is not None:
        charts.append(
            (
                "How sharp was it while it trained?",
                "λmax of every layer"
                + (", the whole model bold" if FULL_NAME in history.blocks else "")
                + "; the band is the error bound. Point at a layer to see its own.",
                all_blocks,
            )
        )
    if (optimizer := threshold(history)) is not None:
        said = "Bold: the preconditioned sharpness of the whole model; dashed: above it the optimizer is unstable."
        charts.append(("How near the edge of stability?", said, optimizer))
    steps = f"steps {points[0].step:,} to {points[-1].step:,}" if points else "no point"
    return template("page/history.html.j2").render(
        title=history.settings.get("model") or "model",
        under=f"Curvature while it trained · {numbers.counted(len(points), 'point')}, {steps} · "
        f"{numbers.share(history.share)} of the training’s time",
        answers=_answers(history),
        sign=sign,
        charts=charts,
        rows=[_row(history, name) for name in sorted(history.blocks, key=lambda name: name != FULL_NAME)],
        notes=[
            "Each number is a Rayleigh quotient: an eigenvalue lies within its error bound. A larger one is excluded "
            "from a multiple on that each row tells, except with a probability of 1 %.",
            *history.notes,
        ],
        settings=[(key, setting(value)) for key, value in history.settings.items()],
    )


def _readings(history: History, block: str) -> list[tuple[int, Reading]]:
    return [(point.step, point.readings[block]) for point in history.points if block in point.readings]


def _answers(history: History) -> list[Answer]:
    if not history.points:
        nothing = "There was no time for a point; use a larger overhead, less data, or overhead=None."
        if history.notes and STOPPED in history.notes[-1]:
            nothing = f"{history.notes[-1][0].upper()}{history.notes[-1][1:]}"
        return [Answer("sharp", "Which layers are sharp?", "Not known: no point", WRONG, [nothing])]
    last = history.points[-1]
    blocks = [reading for name, reading in last.readings.items() if name != FULL_NAME]
    found = []
    if blocks:
        best = max(blocks, key=lambda reading: reading.lambda_max)
        said = [f"λmax {numbers.with_bound(best.lambda_max, best.bound)} at step {last.step:,}."]
        found.append(Answer("sharp", "Which layer is the sharpest now?", short(best.block), PLAIN, said))
    if last.full is not None:
        found.append(_trend(_readings(history, FULL_NAME)))
    if last.full is not None and math.isfinite(last.full.ratio):
        ratio = last.full.ratio
        step, most = max(
            ((step, r.ratio) for step, r in _readings(history, FULL_NAME) if math.isfinite(r.ratio)),
            key=lambda found: found[1],
        )
        tone = WARN if ratio > 1.0 else GOOD if most <= 1.0 else PLAIN
        said = [
            f"Preconditioned sharpness {numbers.number(last.full.preconditioned)} against "
            f"{numbers.number(last.full.threshold)}. At 1 the optimizer is at the edge of stability."
        ]
        if most > max(ratio, 1.0):
            said.append(f"It was {numbers.number(most, 3)} times the threshold at step {step:,}.")
        headline = f"{numbers.number(ratio, 3)} times the threshold"
        found.append(Answer("follows", "Is the learning rate too large?", headline, tone, said))
    elif last.full is not None and last.full.lambda_max > 0.0:
        limit = numbers.number(2.0 / last.full.lambda_max, 3)
        said = [f"2/λmax = {limit} at step {last.step:,}, for plain gradient descent on all data."]
        found.append(Answer("follows", "What follows?", f"Learning rate below {limit}", PLAIN, said))
    return found


def _trend(readings: list[tuple[int, Reading]]) -> Answer:
    (begin, first), (end, last) = readings[0], readings[-1]
    question = "Where is it going?"
    said = [
        f"λmax of the whole model: {numbers.with_bound(first.lambda_max, first.bound)} at step {begin:,}, "
        f"{numbers.with_bound(last.lambda_max, last.bound)} at step {end:,}."
    ]
    if not (first.lambda_max > first.bound and last.lambda_max > last.bound):
        return Answer("trust", question, "No positive curvature at an end", PLAIN, said)
    ratio = last.lambda_max / first.lambda_max
    if ratio > GREW:
        headline = f"{numbers.times(ratio)} times sharper"
    elif ratio < 1.0 / GREW:
        headline = f"{numbers.times(1.0 / ratio)} times flatter"
    else:
        headline = "About as sharp as at first"
    return Answer("trust", question, headline, PLAIN, said)


def _row(history: History, block: str) -> Row:
    readings = _readings(history, block)
    (_, first), (_, last) = readings[0], readings[-1]
    step, largest = max(readings, key=lambda found: found[1].lambda_max)
    details = f"Largest at step {step:,}. {numbers.counted(len(readings), 'point')}."
    if math.isfinite(last.missed_factor):
        details += (
            f" At the last one an eigenvalue above {numbers.number(last.missed_factor, 3)} times λmax is excluded."
        )
    return Row(
        block=block,
        name="whole model" if block == FULL_NAME else block,
        first=numbers.with_bound(first.lambda_max, first.bound),
        largest=numbers.with_bound(largest.lambda_max, largest.bound),
        last=numbers.with_bound(last.lambda_max, last.bound),
        keys={"first": first.lambda_max, "largest": largest.lambda_max, "top": last.lambda_max},
        details=details,
        whole=block == FULL_NAME,
    )
