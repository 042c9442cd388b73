"""``layerhess.plan``: which weight gets how many bits, found by measurement and held against simple alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from layerhess.analysis import identity
from layerhess.analysis.identity import Content
from layerhess.checks.survey import survey
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import budget as memory_budget
from layerhess.curvature.record_file import digest_of
from layerhess.errors import InputError, add_note, checked_integer
from layerhess.objective.blocks import Scheme, partition
from layerhess.objective.group import world
from layerhess.objective.interrupts import STOPS, deferred_interrupts
from layerhess.objective.objective import Objective
from layerhess.objective.shares import same_question
from layerhess.planning.budget import Budget, budget_of
from layerhess.planning.layers import NOT_ALLOWED, Layers, layers_of
from layerhess.planning.measuring.meter import fixed
from layerhess.planning.metric import Metric, metric_of
from layerhess.planning.planner import Planner, Question
from layerhess.planning.reach import refuse_unreachable
from layerhess.planning.result import Plan, load_plan
from layerhess.planning.rows_file import RowsFile, another_run
from layerhess.planning.verification import Verified, verified
from layerhess.planning.weights.applied import changed
from layerhess.results import plan_file, result_folder, store
from layerhess.results.options import Function, as_json
from layerhess.results.plan import COUPLINGS, CRITERIA, ForwardCounts

Told = Callable[[float, float, str], None]


def plan(
    objective: Objective,
    options: Any = (2, 3, 4, 8),
    budget: Any = "4bit",
    *,
    layers: Scheme = "weight",
    criterion: str = "measured",
    couplings: str = "outputs",
    allowed: Mapping[str, Any] | None = None,
    pinned: Mapping[str, Any] | None = None,
    tied: Iterable[Iterable[str]] = (),
    metric: Callable[..., Any] | None = None,
    held_out: Any = None,
    verify: bool = True,
    curvature: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Told | None = None,
) -> Plan:
    """An option for every weight, within a budget, that increases the loss least.

    Every (layer, option) is measured alone, by a forward pass over the data. The changes of the outputs that these
    passes give tell how layers interact. Several candidate plans are then measured, and the best one is taken; uniform
    plans and HAWQ-V2's are among them. The model is as it was afterwards, whatever happens;
    :func:`layerhess.apply_plan` changes it.

    Args:
        objective: model, calibration data and loss.
        options: what a weight may become: numbers of bits, :class:`layerhess.Quantize`, :class:`layerhess.Prune`, and
            functions weight -> weight (named; with an attribute ``bits`` if they save any).
        budget: "4bit" (mean over the planned weights, scales not counted), "3.5MB" (scales of 16 bits counted), or a
            dict with some of ``bits=``, ``bytes=``, ``latency=(table, limit)`` (weight name -> a number for every
            option), ``bops=(table, limit)`` (weight name -> multiply-accumulates, times stored bits), and ``increase=``
            (a cap on the increase of the loss: the smallest plan below it is looked for).
        layers: a block scheme; tensors of at least two dimensions are planned, those of one block alike.
        criterion: "measured"; or single layers by "curvature", "gauss_newton", "hawq_v2", "hawq" or "fisher", whose
            plan is then taken as it is.
        couplings: interactions from the "outputs", by "hessian" products, or "none".
        allowed: weight name or glob -> the options allowed for it. pinned: weight name or glob -> its option.
        tied: groups of weight names or globs that take the same option.
        metric: ``metric(output, target)``, a number for every example or the batch's mean; or ``metric(model)``.
        held_out: data of the objective's form (or an objective of the same model) that the plan is verified on.
        verify: hold the plan against uniform, HAWQ-V2's and random plans; without, ``metric`` and ``held_out`` are of
            the plan and the unchanged model alone. curvature: compute what curvature predicts.
        seed: of everything that is drawn. out: a folder for plan.json and report.html; what is measured is written down
            beside it. resume: go on from there. progress: called with forward passes over the data so far, how many
            there will be at most, and what is measured.

    Returns:
        :class:`layerhess.planning.result.Plan`: ``.choice``, ``.measured``, ``.predicted``, ``.baselines``, ...

    Raises:
        InputError: unusable arguments, a budget that no plan meets (the nearest is said), integer or already quantised
            weights. CheckError: a loss that is another when it is computed again.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.eye(2)), model[1].weight.data.copy_(torch.tensor([[1.0, 0.3]]))
    >>> data = (torch.eye(2), torch.tensor([[1.0], [0.3]]))
    >>> plan = lh.plan(lh.Objective(model, data, torch.nn.MSELoss()), options=(2, 8), budget={"bits": 6})
    >>> {name: str(option) for name, option in plan.choice.items()}      # the identity needs two bits only
    {'0.weight': 'w2', '1.weight': 'w8'}
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"the objective is {type(objective).__name__}", where="objective", what_to_do="give an lh.Objective"
        )
    _refuse_unknown("criterion", criterion, CRITERIA)
    _refuse_unknown("couplings", couplings, COUPLINGS)
    seed = checked_integer(seed, "seed", 0)
    if resume and out is None:
        raise InputError(
            "resume=True needs the folder of the run that is to go on", where="out", what_to_do="give out= (--out)"
        )
    judged_by = metric_of(metric)
    with world().together() as group:
        planned = layers_of(objective, options, layers, allowed=allowed, pinned=pinned, tied=tied)
        within = budget_of(budget, planned)
        refuse_unreachable(planned, within, planned.why_not)
        if within.increase is not None and criterion != "measured":
            raise InputError(
                f"the budget's increase is a cap on measured increases, and the criterion is {criterion!r}",
                where="budget",
                what_to_do="use criterion='measured', or a budget of bits or bytes",
            )
        held = None if held_out is None else fixed(_held_out(objective, held_out))[0]
        folder = None if out is None or group.rank else result_folder.check_writable(out, result_folder.PLAN)
        settings: dict[str, Any] = {
            "model": type(objective.model).__name__,
            "options": [as_json(option) for option in planned.options],
            "budget": within.text,
            "layers": layers if isinstance(layers, str) else "given",
            "criterion": criterion,
            "couplings": couplings,
            "pinned": {planned.names[i]: planned.options[k].name for i, k in planned.pinned.items()},
            "tied": [[planned.names[i] for i in places] for places in planned.tied],
            "seed": seed,
            "curvature": bool(curvature),
            "held_out": held is not None,
            "metric": "" if judged_by is None else judged_by.name,
        }
        same_question(settings | {"the number of weights": len(planned.weights)}, group)
        objective, note = fixed(objective)
        run = _Run(objective, planned, within, settings, held, judged_by, bool(verify), folder, bool(resume), progress)
        with deferred_interrupts(), objective.session():
            return run.made([note] if note else [])


class _Run:
    """One call of :func:`plan`."""

    def __init__(
        self,
        objective: Objective,
        layers: Layers,
        budget: Budget,
        settings: dict[str, Any],
        held_out: Objective | None,
        metric: Metric | None,
        verify: bool,
        folder: Path | None,
        resume: bool,
        progress: Told | None,
    ) -> None:
        self.objective, self.layers, self.budget, self.settings = objective, layers, budget, settings
        self.held_out, self.metric, self.verify = held_out, metric, verify
        self.folder, self.resume, self._progress = folder, resume, progress
        self._forwards = 0.0
        self._most = 3.0 * len(layers.weights) * len(layers.options)

    def told(self, forwards: float, what: str) -> None:
        """Say how far it is."""
        self._forwards += forwards
        if self._progress is not None:
            self._progress(self._forwards, max(self._most, self._forwards), what)

    def made(self, notes: list[str]) -> Plan:
        """The plan (in session)."""
        self.told(0.0, "the data")
        content = Content()
        surveyed = survey(self.objective, Counters(), witness=lambda: content.see)
        if surveyed.pieces is not None:  # memory does not suffice for whole batches
            self.objective = self.objective.resized(surveyed.pieces)
        versions = identity.versions()
        if self.held_out is not None:
            self.held_out = _surveyed(self.held_out)
        divided = partition(self.objective.model, self.objective.parameters, self.objective.frozen, "parameter")
        known = identity.of_call(self.objective, divided, self.settings, versions) | {
            "data": identity.of_data(surveyed, content.with_others(self.objective.group)),
            "planned": {"the digest of the weights' options": _digest(self.objective, self.layers)},
        }
        there = self._finished(known) if self.resume else None
        if there is not None:
            return there
        path = None if self.folder is None else store.journal_path(self.folder)
        rows = RowsFile(path, self.objective, known, resume=self.resume)
        try:
            free = memory_budget(self.objective.devices, group=self.objective.group).room
            question = Question(
                self.settings["criterion"], self.settings["couplings"], self.settings["curvature"],
                self.settings["seed"], float(free), surveyed.batches,
            )  # fmt: skip
            planner = Planner(self.objective, self.layers, self.budget, question, rows, self.told)
            chosen = planner.plan()
            measuring = planner.meter.forwards
            found = verified(
                planner, chosen, held_out=self.held_out, metric=self.metric, verify=self.verify,
                seed=self.settings["seed"],
            )  # fmt: skip
            result = self._result(planner, chosen, found, notes, versions, known, measuring)
            if self.folder is not None:
                result.save(self.folder)
        except STOPS as stop:
            rows.close()
            if path is not None:
                add_note(stop, f"what was measured is in {path}, and resume goes on from there")
            raise
        except BaseException:
            rows.close()
            raise
        rows.remove()
        return result

    def _finished(self, known: Mapping[str, Any]) -> Plan | None:
        """The plan in the output folder, if this run made it; the first rank looks.

        Raises:
            InputError: another run made it, and there is nothing else to go on from.
        """

        def found() -> Plan | None:
            if self.folder is None or not plan_file.is_plan(self.folder):
                return None
            there = load_plan(self.folder)
            then = there.settings.get(identity.IDENTITY, {})
            differs = identity.difference(then, known, self.objective.dtype)
            if differs and not store.journal_path(self.folder).exists():
                raise another_run(self.folder, differs)
            return None if differs or there.settings.get("verify") != self.verify else there

        group = self.objective.group
        return group.agreed(group.tried(found))

    def _result(
        self,
        planner: Planner,
        chosen: tuple[int, ...],
        found: Verified,
        notes: list[str],
        versions: Mapping[str, str],
        known: Mapping[str, Any],
        forwards: float,
    ) -> Plan:
        layers, budget, table = self.layers, self.budget, planner.table
        by = next((c for c in planner.portfolio.candidates.values() if c.choice == chosen), None)
        own = np.arange(len(chosen))
        interactions = np.full((len(chosen), len(chosen)), math.nan)
        if planner.couplings is not None:
            places = own * len(layers.options) + np.array(chosen)
            interactions = planner.couplings[np.ix_(places, places)] / 2.0
            np.fill_diagonal(interactions, 0.0)
        out = [
            f"{option.name} is out for {name}: {why}"
            for name, row, first in zip(layers.names, table.why_not, layers.why_not, strict=True)
            for option, why, before in zip(layers.options, row, first, strict=True)
            if why and before != NOT_ALLOWED
        ]
        plan = found.plan
        return Plan(
            choice=layers.choice(chosen),
            weights=layers.weights,
            options=layers.options,
            rows=table.rows(budget),
            budget=budget.text,
            mean_bits=budget.mean_bits(chosen),
            size_bytes=budget.size_bytes(chosen),
            float_bytes=budget.float_bytes,
            loss=planner.meter.loss,
            predicted=plan.predicted,
            predicted_block=plan.predicted_block,
            measured=plan.measured,
            measured_error=plan.measured_error,
            interactions=interactions,
            criterion=self.settings["criterion"],
            couplings=self.settings["couplings"],
            found_by="" if by is None else by.name,
            candidates=found.candidates,
            baselines=found.baselines,
            frontier=found.frontier,
            random=found.random,
            gap=math.nan if by is None else by.gap,
            optimal=by is not None and by.optimal,
            gap_of="" if by is None else by.gap_of,
            held_out_loss=found.float_held_out,
            metric=plan.metric,
            metric_float=found.float_metric,
            metric_name="" if self.metric is None else self.metric.name,
            verdict=found.verdict,
            warnings=tuple(
                dict.fromkeys([*notes, *self.objective.notes, *layers.notes, *planner.notes, *out, *found.notes])
            ),
            counts=ForwardCounts(
                measuring=planner.measuring,
                portfolio=forwards - planner.measuring,
                verification=planner.meter.forwards - forwards,
                curvature=planner.curvature_gradients,
            ),
            settings={
                **self.settings,
                "verify": self.verify,
                "versions": dict(versions),
                identity.IDENTITY: dict(known),
            },
        )


def _digest(objective: Objective, layers: Layers) -> str:
    """Of what every weight may become: of options by name, of a user's function by what it makes."""
    parts: list[Any] = []
    for weight, row in zip(layers.weights, layers.why_not, strict=True):
        for option, why in zip(layers.options, row, strict=True):
            own = objective.parameters[weight.name]
            made = changed(option, own, weight.name) if isinstance(option, Function) and not why else option.name
            parts += [weight.name, why, made]
    return digest_of(parts)


def _held_out(objective: Objective, held_out: Any) -> Objective:
    """The objective on other data, or another objective of the same model.

    Raises:
        InputError: of another model.
    """
    if not isinstance(held_out, Objective):
        return objective.varied(data=held_out)
    if held_out.model is not objective.model:
        raise InputError(
            "the held-out objective is of another model",
            where="held_out",
            what_to_do="give the held-out data itself, or an lh.Objective of the same model",
        )
    return held_out


def _surveyed(held_out: Objective) -> Objective:
    """The held-out data, looked at before any work, in pieces that fit into memory."""
    try:
        with held_out.session():
            pieces = survey(held_out, Counters()).pieces
    except InputError as error:
        raise InputError(error.message, where=f"held_out, {error.where}", what_to_do=error.what_to_do) from error
    return held_out if pieces is None else held_out.resized(pieces)


def _refuse_unknown(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}", where=name, what_to_do=f"use {', '.join(map(repr, known))}")
