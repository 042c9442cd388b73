"""The steps of one analysis: survey, self-check, solving, result. A partial result can be made at any point."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerhess.analysis.arguments import Arguments
from layerhess.analysis.batching import batching, note_on_joined
from layerhess.analysis.estimate_options import EstimateOptions
from layerhess.analysis.estimates import Estimation
from layerhess.analysis.fitting import refuse_unless_it_fits
from layerhess.analysis.forecast import forecast
from layerhess.analysis.identity import versions
from layerhess.analysis.microbatches import Microbatches, advice, default_budget, step_bytes
from layerhess.analysis.paths.exact import is_dear
from layerhess.analysis.paths.factors import definite, graph_maker, note_on_licence
from layerhess.analysis.paths.gram import gram_processes, refuse_unlicensed
from layerhess.analysis.pieces import sample_within, within_budget
from layerhess.analysis.progress import Progress
from layerhess.analysis.result import Analysis
from layerhess.analysis.resumption import Resumption
from layerhess.analysis.sampling_errors import SamplingErrors, sampling_errors
from layerhess.analysis.schedule import Schedule
from layerhess.analysis.segments import choose_segments
from layerhess.analysis.spectra import cost_of, mass, refused, spectrum_of, unasked
from layerhess.analysis.tasks import Task, kept_graphs, make_tasks
from layerhess.checks import SelfCheck, check_unsampled, self_check
from layerhess.checks.rounding import RoundingMeter, set_aside
from layerhess.checks.survey import Survey, survey
from layerhess.checks.suspects import refuse_failed
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass
from layerhess.curvature.device import Budget, beside, budget
from layerhess.curvature.matrices import HESSIAN
from layerhess.curvature.smaller_pieces import note_on
from layerhess.errors import InputError, add_note
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from layerhess.objective.blocks import Block, Partition, Scheme, make_block
from layerhess.objective.interrupts import STOPS
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import preserved_random_state
from layerhess.results.record import Check
from layerhess.results.spectrum import Spectrum


class Run:
    """The state of one analysis, from which a result can be made at any point."""

    holds_joined = True  # joined batches against the same apart

    def __init__(
        self,
        objective: Objective,
        divided: Partition,
        scheme: Scheme,
        arguments: Arguments,
        progress: Progress | None,
        skip_failed: bool,
    ) -> None:
        self.objective = objective
        self.divided = divided
        self.arguments = arguments
        self.progress = progress
        self.skip_failed = skip_failed
        self.settings = arguments.settings(scheme, objective, skip_failed)
        self.full_block = make_block(FULL, objective.parameters)
        self.wanted = Wanted(top=arguments.top, bottom=arguments.bottom)
        self.counters = Counters()
        self.started = self.counters.clock()
        self.resumption = Resumption(
            objective, divided, self.settings, versions(), self.counters, out=arguments.out, resume=arguments.resume
        )
        self.journal = self.resumption.journal
        self.notes: list[str] = []
        self.checkpoint: Any = lambda: None
        free = budget(objective.devices, group=objective.group).free
        self.ranks = objective.group.size  # that may share the rows of bases
        self.machine = Budget(self.journal.settled("free", free, here=True))
        self.budget = replace(self.machine, limit=arguments.memory)  # for what solvers and estimators hold
        self.graph_budget = self.budget  # for graphs and factors
        self.step = 0  # bytes of a training step
        self.curvature = arguments.curvature
        self.surveyed: Survey | None = None
        self.checked: SelfCheck | None = None
        self.tasks: list[Task] = []
        self.refuted: set[str] = set()  # blocks of the Hessian for which some batch is not piecewise linear
        self.journal.watch(self.refuted, self._refute)
        self.schedule: Schedule | None = None
        self.gradient_norm = math.nan
        self.partial = ""
        self.estimation: Estimation | None = None
        self.sampled = SamplingErrors()
        self._spectra: dict[str, Spectrum] | None = None

    # -- the steps --------------------------------------------------------------------------------------------------

    def look(self) -> Analysis | None:
        """The survey; the result of this very run where it is to be resumed and is finished already."""
        refuse_unless_it_fits(
            self.objective, self._operators(), self.wanted, self.budget, self.arguments.path, self.arguments.method,
            self.arguments.estimates, self.arguments.exclude, self.ranks,
        )  # fmt: skip
        self._note(*self.objective.notes)
        with self.counters.during("survey"):
            self.objective, sentence = within_budget(self.objective, self.budget)
            self._cut_into("survey")
            self.surveyed = survey(self.objective, self.counters, self.checkpoint, self.resumption.witness)
            self._cut_into("survey", self.surveyed.pieces)
            self._note(*self.objective.notes, sentence, self.surveyed.note)  # what the first pass said
            return self.resumption.meet(self.surveyed)

    def prepare(self) -> None:
        """Self-check and forecast: with the survey, everything that can refuse the analysis."""
        assert self.surveyed is not None
        with self.counters.during("survey"):
            if self.graph_budget.limit is None:
                agreed = self.objective.group.agreed
                self.step = self.journal.settled("step", agreed(step_bytes(self.objective, self.surveyed)), here=True)
                self.graph_budget = default_budget(self.step, self.machine)
        with self.counters.during("checks"):
            self.surveyed = sample_within(self.objective, self.surveyed, self.budget)
            chosen = choose_segments(
                self.objective, self.surveyed, self.curvature, self.full_block, self.graph_budget, self.arguments.seed,
                step=self.step, asked=self.arguments.segments, factors=self.arguments.path in ("factors", "gram"),
                settled=self.journal.settled,
            )  # fmt: skip
            self.curvature = chosen.of(self.curvature)
            self._note(chosen.note)
            self.checked = self_check(
                self.objective, self.surveyed, self._operators(), self.full_block, self.arguments.seed, self.counters,
                self.curvature, self.graph_budget, factors=self.arguments.path != "exact" and not chosen.segments,
                known_again=self.resumption.examples,
            )  # fmt: skip
        self._cut_into("self-check", self.checked.pieces)
        self._note(*self.checked.notes, *self.checked.concerns)
        self._refuse(self.checked.failed)
        names = [block.name for block in self.divided.blocks]
        refuse_unlicensed(self.checked, names, self.arguments.path)
        self._note(note_on_licence(self.checked.licence, names, self.arguments.operator))
        if small := [b.name for b in self._operators().values() if b.numel < self.wanted.total]:
            self._note(f"fewer than top + bottom parameters, so the whole spectrum is given: {', '.join(small[:6])}")
        if self.progress is not None:
            self.progress.forecast(
                forecast(self.surveyed, self.checked, self._operators(), self.arguments, self.counters.seconds)
            )

    def solve(self) -> None:
        """Run all tasks in lockstep; make their spectra while the model is still in session."""
        assert self.surveyed is not None and self.checked is not None
        names = list(self.objective.parameters) if self.arguments.full else self._covered()
        full = make_block(FULL, {name: self.objective.parameters[name] for name in names})
        place = beside(full, self.objective.parameters)
        make = graph_maker(self.curvature, self.checked.licence, self._refute)
        objective, found = self._batching(make)
        self.settings |= self.resumption.begin(
            self.surveyed, self.checked, self.wanted.total * sum(b.numel for b in self._operators().values())
        )
        if self.progress is not None and (sentence := self.resumption.note):
            self.progress.note(sentence)
        data_pass = DataPass(
            objective, names, self.counters, checkpoint=self.checkpoint, make_graph=make, time_unit=True,
            keep=self._kept_room(found.kept), journal=self.journal,
            largest=0 if self.checked.uncut else self.surveyed.largest,
        )  # fmt: skip
        data_pass.expected = (self.surveyed.loss_sum, self.surveyed.count)
        coarsest = self.checked.trace.coarsest
        meter = RoundingMeter(  # passes may find that joined batches must stay apart
            objective.joined(None), self.surveyed.measured, coarsest, self.counters, make, self.graph_budget,
            self.journal.settled,
        )  # fmt: skip
        ready = gram_processes(
            data_pass, self._operators(), self.checked, self.wanted, path=self.arguments.path, seed=self.arguments.seed,
            method=self.arguments.method, tol=self.arguments.tol, memory=self.budget,
            examples=self.surveyed.examples, kept=found.kept, exclude=self.arguments.exclude,
            copies=self.arguments.copies == "search",
        )  # fmt: skip
        self.tasks = tasks = make_tasks(
            self._operators(), self.checked, self.wanted, tol=self.arguments.tol, seed=self.arguments.seed, ready=ready,
            method=self.arguments.method, objective=self.objective, memory=self.budget,
            exclude=self.arguments.exclude, copies=self.arguments.copies == "search", kept=found.kept, ranks=self.ranks,
            dear=not self.arguments.estimates.any and is_dear(objective.numel, self.surveyed.count),
            rank=self.surveyed.curved,
            definite=definite(
                self.arguments.operator, self._operators(), self.surveyed.curved,
                self.checked.licence.blocks.keys() - self.refuted,
            ),
        )  # fmt: skip
        self.estimation = self._estimation(tasks, self.checked.eps, data_pass)
        self._note(*self.estimation.notes)
        self.schedule = Schedule(
            data_pass=data_pass,
            meter=meter,
            tasks=tasks,
            estimators=self.estimation.groups,
            tol=self.arguments.tol,
            exclude=self.arguments.exclude,
            eps=self.checked.eps,
            length=self.surveyed.longest,
            full_block=full,
            probe=lambda: random_unit(full.numel, self.arguments.seed, "probe", 0, place)[None],
            check_unsampled=lambda blocks, full_norm: self._check_unsampled(data_pass, blocks, full_norm),
            max_passes=self.arguments.max_passes,
            time_limit=self.arguments.time_limit,
            progress=self.progress,
            started=self.started,
        )
        with meter, self.counters.during("solve"):
            try:
                self.schedule.run()
                if not self.schedule.stopped:
                    self.estimation.measure_rows(meter)
            except STOPS:
                self.schedule.judge_unfinished()
                self.partial = "interrupted"
                self._spectra_now()
                raise
            finally:
                self._note(advice(data_pass.needed, data_pass.kept, self.graph_budget), data_pass.note)
                self._note(note_on_joined(data_pass.objective.together))
                data_pass.release()
                self.gradient_norm = data_pass.gradient_norm
        self.partial = self.schedule.stopped
        if self.arguments.estimates.sampling and not self.partial:
            self._sample(full)
        self._spectra_now()
        self._note(meter.note)
        if meter.failure:
            how = "assumed, not measured" if meter.assumes else "read off products at weights moved by their last digit"
            self._note(
                f"no copy of the model in another precision could be used ({meter.failure}), so rounding was {how}"
            )

    def save_partial(self, stop: BaseException) -> None:
        """After Ctrl-C or SIGTERM: save the partial result, and say where in the exception."""
        self.partial = "interrupted"
        if self.arguments.out is None or self.schedule is None or self.surveyed is None:
            return
        try:
            with preserved_random_state():
                sentence = f"the partial result is in {self.result().save(self.arguments.out)}{self.resumption.how}"
        except InputError as error:
            sentence = f"the partial result could not be saved: {error}"
        add_note(stop, sentence)

    def result(self) -> Analysis:
        """The analysis as far as it got."""
        assert self.surveyed is not None and self.checked is not None
        spectra = self._spectra_now()
        coupling, checks = self.estimation.overall(spectra) if self.estimation is not None else (None, [])
        full = spectra.pop(FULL, None)
        denominator = 1.0 if self.objective.evaluation.is_sum else self.surveyed.count
        return Analysis(
            blocks=spectra,
            full=full,
            full_mass=mass(full, self.divided) if full is not None else [],
            frozen=self.objective.frozen,
            uncovered=self.divided.uncovered,
            loss=self.surveyed.loss_sum / denominator,
            loss_count=denominator,
            examples=self.surveyed.examples,
            batches=self.surveyed.batches,
            gradient_norm=self.gradient_norm,
            settings=self.settings,
            checks=(*self.checked.checks, *checks),
            notes=tuple(dict.fromkeys([*self.notes, *self.journal.notes])),
            counts=self.counters.counts(),
            seconds=dict(self.counters.seconds),
            versions=versions(),
            model=type(self.objective.model).__name__,
            total_numel=self.objective.numel,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            partial=self.partial,
            coupling=coupling,
            cost=cost_of(self.counters, spectra, full),
            groups=self.sampled.groups,
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    def _refuse(self, failed: Mapping[str, Check]) -> None:
        """Refuse the analysis for failed checks, or note the blocks that are left out."""
        if not failed:
            return
        if not self.skip_failed:
            raise refuse_failed(failed, skippable=True)
        self._note("blocks refused by the self-check: " + ", ".join(failed))

    def _cut_into(self, phase: str, pieces: int | None = None) -> None:
        """Process so many examples at a time, or as many as an earlier run did, where memory ran out in this phase."""
        if size := self.journal.settled(f"examples at a time after the {phase}", pieces or False, here=True):
            self.objective = self.objective.resized(size)
            self._note(note_on(size))
            if self.surveyed is not None:
                self.surveyed = self.surveyed.cut(self.objective, size, data=True)

    def _check_unsampled(self, data_pass: DataPass, blocks: dict[str, Block], full_norm: float) -> Mapping[str, Check]:
        assert self.checked is not None
        failed = check_unsampled(self.objective, data_pass, blocks, full_norm, self.arguments.seed, self.checked)
        self._refuse(failed)
        return failed

    def _operators(self) -> dict[str, Block]:
        own = {block.name: block for block in self.divided.blocks}
        return own | ({FULL: self.full_block} if self.arguments.full else {})

    def _kept_room(self, kept: bool) -> float:
        assert self.checked is not None
        kept_room = kept_graphs(
            self.graph_budget, self._operators(), self.checked, self.wanted, self.budget, self.objective,
            self.arguments.exclude, self.arguments.copies == "search", kept, self.ranks,
        )  # fmt: skip
        return max(0.0, kept_room - set_aside(self.objective.numel, self.graph_budget))

    def _refute(self, name: str) -> None:
        """Take back that H_bb = G_bb, which a licence knows of a sample: a batch's own graph does not bear it out."""
        if self.arguments.operator != HESSIAN.name or name in self.refuted:
            return
        self.refuted.add(name)
        for task in (task for task in self.tasks if task.name == name):
            task.refute()

    def _covered(self) -> list[str]:
        covered = {name for block in self.divided.blocks for name in block.parameters}
        return [name for name in self.objective.parameters if name in covered]

    def _estimation(self, tasks: list[Task], eps: float, data_pass: DataPass) -> Estimation:
        assert self.checked is not None and self.surveyed is not None
        blocks = {b.name: b for b in self.divided.blocks if b.name not in self.checked.failed}
        whole = self.arguments.full and FULL not in self.checked.failed
        taken = {name for block in blocks.values() for name in block.parameters}
        parameters = self.objective.parameters
        asked = self.arguments.estimates if blocks or whole else EstimateOptions()  # every block was refused
        return Estimation(
            asked, blocks=blocks, whole=whole, seed=self.arguments.seed,
            parameters=parameters, full=make_block(FULL, {n: p for n, p in parameters.items() if whole or n in
            taken}), rest=make_block("(rest)", {n: p for n, p in parameters.items() if n not in taken}),
            tasks=tasks, eps=eps, length=self.surveyed.longest, memory=self.budget,
            diagonals=data_pass.diagonals,
        )  # fmt: skip

    def _batching(self, make: GraphMaker) -> tuple[Objective, Microbatches]:
        """The objective as its data goes through the model in passes; and how batches are cut."""
        assert self.surveyed is not None and self.checked is not None
        objective, found, sentence = batching(
            self.objective, self.surveyed, self.checked, make, list(self._operators().values()), self.graph_budget,
            self.journal, step=self.step, held=self.holds_joined,
        )  # fmt: skip
        self._note(sentence)
        return objective, found

    def _sample(self, full: Block) -> None:
        assert self.surveyed and self.checked and self.schedule and self.estimation
        found = {t.name: t.candidates for t in self.schedule.tasks if t.done and t.candidates is not None}
        pairs = {
            task.name: (task.block, found[task.name].vectors, found[task.name].values)
            for task in self.schedule.tasks
            if task.name in found and len(found[task.name].values)
        }
        with self.counters.during("sampling"):
            self.sampled = sampling_errors(
                self.objective, graph_maker(self.curvature, self.checked.licence), self.surveyed, pairs,
                self.estimation.traced(), full,
                self.arguments.seed, self.counters, self.checkpoint, self.checked.uncut, self.journal,
                self.budget, self.schedule.data_pass.objective.batch_size,
            )  # fmt: skip
        self._note(self.sampled.note)

    def _spectra_now(self) -> dict[str, Spectrum]:
        if self._spectra is None:
            assert self.checked is not None
            tasks = {task.name: task for task in self.schedule.tasks} if self.schedule is not None else {}
            spectra = {name: self._spectrum(name, block, tasks.get(name)) for name, block in self._operators().items()}
            if self.estimation is not None:
                spectra = self.estimation.attach(spectra, self.sampled)
            self._spectra = spectra
        return dict(self._spectra)

    def _spectrum(self, name: str, block: Block, task: Task | None) -> Spectrum:
        assert self.checked is not None
        operator = self.arguments.operator
        if name in self.checked.failed:
            return refused(block, self.objective, operator, self.checked.failed[name])
        if task is None:
            return unasked(block, self.objective, operator)
        copies = self.arguments.copies == "search"
        return spectrum_of(task, self.objective, operator, self.wanted, self.arguments.tol, copies)

    def _note(self, *sentences: str) -> None:
        for sentence in sentences:
            if sentence and sentence not in self.notes:
                self.notes.append(sentence)
                if self.progress is not None:
                    self.progress.note(sentence)
