"""The page of a plan, and the shorter form of it that stands in an analysis' report."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from layerhess.linalg.described import called, plain
from layerhess.results.plan import PlanRecord
from layerhess.show import numbers
from layerhess.show.page.answers import GOOD, PLAIN, WARN, WRONG, Answer
from layerhess.show.page.templates import setting, sign, template
from layerhess.show.plan import charts, words
from layerhess.show.plan.layers import table
from layerhess.show.plan.table import metric_sentence, plan_rows

MEANING = [
    "Every layer’s increase is measured, not modelled: the layer’s weights are changed, all others stay, and the loss "
    "on the calibration data is computed again. Curvature is shown beside it: g'd + d'Hd / 2 for a change d.",
    "A standard error says how far other examples of the same kind would move a number. It is paired: the loss of each "
    "example with the change, less its loss without.",
    "Layers act together. From the change of the outputs that each option makes, the loss at the sum of these changes "
    "predicts a whole plan; what is left over after all layers alone is the part of the pairs.",
    "The size counts the planned weights with 16 bits for each scale and each zero point. Biases, normalisation and "
    "activations are not counted, nor what a file format adds.",
]

VERDICTS = (  # what a verdict says -> the headline and its tone: the verdict alone judges; the first that fits
    ("does not keep the cap", "No uniform plan keeps the cap", PLAIN),
    ("WORSE", "No, uniform bits are better", WRONG),
    ("LARGER", "No, larger than uniform bits", WRONG),
    ("not distinguishable", "Not told apart from uniform bits", WARN),
    ("is not finite", "Yes, with uniform bits the loss is lost", GOOD),
    ("better than", "Yes, better than uniform bits", GOOD),
    ("smaller than", "Yes, smaller than uniform bits", GOOD),
    ("the plan is uniform", "It is the uniform plan", PLAIN),
)


def as_html(plan: PlanRecord) -> str:
    """The plan as one self-contained HTML document, readable in light and in dark.

    Args:
        plan: names and sentences in it may contain anything, they are escaped.
    """
    model = plan.settings.get("model")
    return template("plan/plan.html.j2").render(
        **_parts(plan),
        title=model if isinstance(model, str) and model else "model",
        under=f"Plan for {numbers.counted(len(plan.choice), 'layer')} · budget: {plain(plan.budget)} · loss "
        f"{numbers.number(plan.loss)}",
        answers=answers(plan),
        table=table(plan),
        predicted=charts.predicted_against_measured(plan),
        frontier=charts.frontier(plan),
        triangle=charts.signed_triangle(plan),
        pairs=[(pair, words.increase(pair.share), _part(plan, pair.share)) for pair in words.pairs(plan)],
        told_pairs=words.told_pairs(plan),
        verdict=words.verdict(plan),
        between=words.between_layers(plan),
        cost=words.cost(plan),
        meaning=MEANING,
        candidates=[(name, one) for name, one in plan.candidates.items()],
        increase=words.increase,
        settings=[(key, _setting(key, value, plan)) for key, value in plan.settings.items() if key != "identity"],
    )


def section(plan: PlanRecord) -> Markup:
    """The plan's part of an analysis' report: what was chosen, what it costs, and what it was held against."""
    return Markup(template("plan/section.html.j2").render(**_parts(plan), answers=answers(plan)))


def _parts(plan: PlanRecord) -> dict[str, Any]:
    return {
        "plan": plan,
        "sign": sign,
        "strip": charts.strip(plan),
        "rows": plan_rows(plan),
        "shapes": charts.SHAPES,
        "called": charts.CALLED,
        "number": numbers.number,
    }


def answers(plan: PlanRecord) -> list[Answer]:
    """What was chosen, what it costs, whether it is better than the simple ways: each says what it does not know."""
    return [_chosen(plan), _costs(plan), _better(plan)]


def _chosen(plan: PlanRecord) -> Answer:
    headline = f"{numbers.number(plan.mean_bits, 3)} bits a weight, {words.megabytes(plan.size_bytes)}"
    smaller = plan.float_bytes / plan.size_bytes if plan.size_bytes > 0.0 else math.nan
    said = [
        f"Instead of {words.megabytes(plan.float_bytes)}: {numbers.number(smaller, 2)} times smaller.",
        f"{words.tally(plan)}.",
        words.search(plan),
    ]
    return Answer("chosen", "What was chosen?", headline, PLAIN, said)


def _costs(plan: PlanRecord) -> Answer:
    question = "What does it cost?"
    if math.isnan(plan.measured):
        return Answer("costs", question, "Not measured", WRONG, [metric_sentence(plan)])
    headline = f"Loss {words.increase(plan.measured, plan.measured_error)}"
    predicted = f"Predicted {words.increase(plan.predicted)}" if math.isfinite(plan.predicted) else ""
    if predicted and plan.measured:
        predicted += f", {numbers.share(abs(plan.predicted - plan.measured) / abs(plan.measured))} off"
    own = words.own(plan)
    held = (
        "" if own.held_out is None else f"On held-out data: {words.increase(own.held_out.value, own.held_out.error)}."
    )
    said = [f"{predicted}." if predicted else "", held, metric_sentence(plan), words.between_layers(plan)]
    worse = [f"{called(warning, 160).rstrip('.')}." for warning in plan.warnings[:2]]
    return Answer("costs", question, headline, WARN if worse else PLAIN, [s for s in (*said, *worse) if s])


def _better(plan: PlanRecord) -> Answer:
    question, said = "Is it better than the simple ways?", words.verdict(plan)
    if not said:
        return Answer("better", question, "Not verified", PLAIN, [])
    for word, headline, tone in VERDICTS:
        if word in plan.verdict:
            return Answer("better", question, headline, tone, [said])
    return Answer("better", question, "Judged", PLAIN, [said])


def _part(plan: PlanRecord, value: float) -> str:
    """A share of the predicted increase, with its sign."""
    whole = abs(plan.predicted)
    if not whole > 0.0:
        return ""
    return ("−" if value < 0.0 else "+") + numbers.share(abs(value) / whole)


def _setting(key: str, value: Any, plan: PlanRecord) -> str:
    if key == "options":
        return ", ".join(option.name for option in plan.options)
    return setting(value) or "none"
