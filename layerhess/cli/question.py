"""What a command asks: the options of ``analyze``, by name, as an objective and as arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from layerhess.cli.factory import load_objective
from layerhess.cli.prepare import block_scheme, estimate, names_or_none, number_or_none, prepared
from layerhess.objective.objective import Objective

NO_COST = ("out", "resume", "learning_rate")  # where a result goes and how it is shown: it costs the same
PASSED_ON = (
    "operator", "top", "full", "tol", "copies", "seed", "method", "path", "memory", "max_passes", "time_limit",
    "skip_failed", "resume", "learning_rate",
)  # fmt: skip


def objective_of(options: Mapping[str, Any]) -> Objective:
    """What the factory returns, prepared as the options say.

    Raises:
        InputError: see :mod:`layerhess.cli.factory` and :mod:`layerhess.cli.prepare`.
    """
    return prepared(
        load_objective(options["factory"]),
        checkpoint=options["checkpoint"],
        device=options["device"],
        eval_mode=options["eval_mode"],
        stop_gradients=options["stop_gradients"],
        examples=options["examples"],
        examples_seed=options["examples_seed"],
        batch_size=options["batch_size"],
    )


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`layerhess.analyze`, but for ``out`` and ``progress``.

    Raises:
        InputError: naming the flag.
    """
    everything = options["everything"]
    trace = options["trace"] or everything
    # For a subset sampling errors are measured, if anything asked for can have one.
    sampled = options["examples"] is not None and (
        options["top"] + options["bottom"] > 0 or trace or options["trace_tol"] or options["trace_method"]
    )
    return {
        **{name: options[name] for name in PASSED_ON if name in options},
        "blocks": block_scheme(options["blocks"] or ["parameter"]),
        "bottom": max(options["bottom"], 1) if everything else options["bottom"],
        "trace": estimate("trace", trace, rel=options["trace_tol"], method=options["trace_method"]),
        "diagonal": estimate("diagonal", options["diagonal"] or everything, max_probes=options["diagonal_probes"]),
        "density": estimate(
            "density", options["density"] or everything, probes=options["density_probes"],
            steps=options["density_steps"], axis=options["density_axis"],
        ),
        "coupling": estimate("coupling", options["coupling"] or everything, probes=options["coupling_probes"]),
        "sampling": bool(everything or sampled) if options["sampling"] is None else options["sampling"],
        "exclude": number_or_none(options["exclude"], "--exclude"),
        "segments": names_or_none(options["segments"] or ["auto"]),
    }  # fmt: skip


def with_options_of(command: Callable[..., None], own: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of another one and its own.

    Args:
        own: takes its own options by name, and all others in ``**options``.
    """
    hints = get_type_hints(command, include_extras=True) | get_type_hints(own, include_extras=True)
    theirs = inspect.signature(command).parameters.values()
    ours = [p for p in inspect.signature(own).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    def made(**options: Any) -> None:
        own(**options)

    made.__doc__ = own.__doc__
    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in (*theirs, *ours)]
    )
    made.__annotations__ = {p.name: hints[p.name] for p in (*theirs, *ours)}
    return made
