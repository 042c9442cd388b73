"""The estimators of an analysis (traces, diagonals, densities, couplings), and their results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from layerhess.analysis.density_known import density_of
from layerhess.analysis.estimate_options import EstimateOptions
from layerhess.analysis.matrix_errors import couplings_with_errors, matrix_errors, with_errors
from layerhess.analysis.probing.block_samples import Known, shaped
from layerhess.analysis.probing.density_start import DensityEstimator
from layerhess.analysis.probing.room import (
    LEAST_PRODUCTS,
    SHARED_METHODS,
    Room,
    finds_pairs,
    keeps_bases,
    refuse_estimates,
    room_of,
)
from layerhess.analysis.probing.shared_probes import SharedProbes
from layerhess.analysis.probing.solved import known_of
from layerhess.analysis.sampling_errors import SamplingErrors
from layerhess.analysis.schedule import Estimator
from layerhess.analysis.tasks import Task
from layerhess.analysis.waves import groups_within
from layerhess.checks.matrix_rounding import MatrixRounding, RowRounding
from layerhess.checks.rounding import RoundingMeter
from layerhess.curvature.data_pass import FULL, Request
from layerhess.curvature.device import Budget, beside
from layerhess.errors import InputError
from layerhess.linalg.bounds import unit_rounding
from layerhess.linalg.estimates import CouplingEstimate, TraceEstimate
from layerhess.linalg.random_vectors import random_signs, random_unit
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, check_moments
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.divergence import divergences
from layerhess.linalg.stochastic.methods import diagonal_process, trace_process
from layerhess.linalg.stochastic.rounding import coarser
from layerhess.linalg.stochastic.trace import Trace, rounded
from layerhess.objective.blocks import Block
from layerhess.results.record import Check
from layerhess.results.spectrum import Spectrum

REST = "(rest)"
MOST_COLUMNS = 4096


@dataclass
class BlockEstimator:
    """An estimator that runs one process of :mod:`layerhess.linalg.stochastic` for one block."""

    key: str
    block: Block
    process: Any

    @property
    def done(self) -> bool:
        """True when the process is done."""
        return bool(self.process.done)

    def requests(self) -> dict[str, Request]:
        """The products that the process asks for."""
        return {self.key: Request(self.block, self.process.ask())}

    def tell(self, products: Mapping[str, Tensor]) -> None:
        """Pass the products on to the process."""
        self.process.tell(products[self.key])


@dataclass
class Estimation:
    """The estimators of one analysis, and their results.

    Args:
        options: which estimates, how accurate. blocks: those to estimate, in model order. full: the block of all
            parameters that take part. whole: also estimate the full model. seed: of the probes. parameters: of the
            model; a block's vectors lie beside its own. tasks: of the eigenvalue solvers. eps, length: of the products'
            rounding, see :func:`layerhess.linalg.bounds.unit_rounding`. memory: the budget. diagonals: block name ->
            exact diagonal, of the blocks that need no probes for it.

    Attributes:
        notes: sentences for the reader. groups: of estimators, for the schedule. row_rounding: of the couplings.
    """

    options: EstimateOptions
    blocks: Mapping[str, Block]
    full: Block
    rest: Block | None
    whole: bool
    seed: int
    parameters: Mapping[str, Tensor]
    memory: Budget
    tasks: Sequence[Task] = ()
    eps: float = 0.0
    length: float = 1.0
    diagonals: Callable[[Mapping[str, Block]], Mapping[str, Tensor]] = lambda blocks: {}
    groups: list[list[Estimator]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    row_rounding: RowRounding = field(default_factory=RowRounding)
    _shared: SharedProbes | None = None
    _densities: dict[str, StochasticLanczos] = field(default_factory=dict)
    _density_estimators: dict[str, DensityEstimator] = field(default_factory=dict)
    _traces: dict[str, Any] = field(default_factory=dict)
    _diagonals: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dense = {task.name for task in self.tasks if task.whole}
        self.room = self._room()
        others: list[Estimator] = []
        trace, diagonal = self.options.trace, self.options.diagonal
        if trace is not None and trace.method not in SHARED_METHODS:
            self._traces = self._alone("trace", trace, others)
            trace = None
        if diagonal is not None and diagonal.method not in SHARED_METHODS:
            self._diagonals = self._alone("diagonal", diagonal, others)
            diagonal = None
        if self.options.density is not None:
            self._plan_densities(self.options.density, shared=trace is not None or diagonal is not None)
        if trace or diagonal or self.options.coupling:
            self._shared = self._plan_probing(trace, diagonal)
            others.append(self._shared)
        if others:
            self.groups = [self.groups[0] + others] if len(self.groups) == 1 else [*self.groups, others]

    # -- plans ------------------------------------------------------------------------------------------------------

    def _room(self) -> Room:
        """Beside the solvers' bases; where that is too little, these are dropped first."""
        sizes = {name: block.numel for name, block in self._operators().items() if name not in self.dense}
        if any(task.kept and not task.whole for task in self.tasks):
            try:
                refuse_estimates(self.options, sizes, self.full.numel, beside := room_of(self.memory, beside=True))
                return beside
            except InputError:
                for task in self.tasks:
                    task.kept = False
        return room_of(self.memory, beside=False)

    def _operators(self) -> dict[str, Block]:
        return {**self.blocks, **({FULL: self.full} if self.whole else {})}

    def _plan_densities(self, options: Density, shared: bool) -> None:
        """Plan the densities of all blocks that are not read whole.

        Args:
            shared: traces or diagonals by shared probes are wanted too, which use the densities' first products.
        """
        coupling = self.options.coupling
        coupled = self.blocks if coupling is not None else {}
        sampled = {name: block for name, block in self._operators().items() if name not in self.dense}
        together = self.room.densities(
            {name: block.numel for name, block in sampled.items()}, options.probes, shared or coupling is not None
        )
        reused = together is None  # all fit at once, and so do the first products that are used for other estimates
        room = self.room.rows(self.full.numel, most=MOST_COLUMNS) if reused else 0
        left = room  # for whole columns in the first pass; those that do not fit are made later
        shared = shared and reused
        keep = reused and keeps_bases(sum(block.numel for block in sampled.values()), options, self.room.nbytes / 4)
        pairs = finds_pairs({name: b.numel for name, b in sampled.items()}, options, self.room.nbytes / 4)
        for name, block in sampled.items():
            number = None if together is None else together[name]
            starts = self._starts(name, block)
            process = StochasticLanczos(block.numel, options, starts, number, keep, pairs=reused and name in pairs)
            columns = 0
            if coupling is not None and left and name in coupled and block.numel > coupling.probes:
                columns = min(coupling.probes, options.probes, left)
                left -= columns
            estimator = DensityEstimator(
                f"(density) {name}",
                block,
                process,
                full=self.full,
                others=coupled,
                columns=columns,
                remembers=shared or columns > 0,
                bases=min(4 * options.probes // 5, room // (2 * options.steps)) if shared and name != FULL else 0,
            )
            self._densities[name], self._density_estimators[name] = process, estimator
        found = together or dict.fromkeys(sampled, 0)
        sizes = {name: self.room.density(block.numel, found[name]) for name, block in sampled.items()}
        for group in groups_within(sizes, self.room.nbytes):
            self.groups.append([self._density_estimators[name] for name in group])
        if short := [name for name, process in self._densities.items() if process.n < options.steps]:
            more = f" and {len(short) - 6} more" if len(short) > 6 else ""
            self.notes.append(
                f"a density can take no more Lanczos steps than its block has parameters, fewer than the "
                f"{options.steps} asked for in: {', '.join(short[:6])}{more}"
            )

    def _alone(self, kind: str, options: Any, estimators: list[Estimator]) -> dict[str, Any]:
        made = {}
        total = sum(block.numel for name, block in self._operators().items() if name not in self.dense)
        most = options.probes or options.max_probes
        fits = self.room.products(total, most, options.probes or LEAST_PRODUCTS, kind)
        if fits < most:
            options = dataclasses.replace(options, max_probes=fits)
            self.notes.append(f"memory: {options.method} keeps its vectors, so that no more than {fits} products fit")
        for name, block in self._operators().items():
            if name in self.dense:
                continue
            signs, place = self._signs(name, block, kind), beside(block, self.parameters)
            if kind == "trace":
                directions = self._directions(name, block, kind)
                process: Any = trace_process(block.numel, options, signs, directions, device=place)
            else:
                process = diagonal_process(block.numel, options, signs, device=place)
            made[name] = process
            estimators.append(BlockEstimator(f"({kind}) {name}", block, process))
        return made

    def _plan_probing(self, trace: Trace | None, diagonal: Diagonal | None) -> SharedProbes:
        members = dict(self.blocks)
        if self.whole and self.rest is not None and self.rest.numel:
            members[REST] = self.rest
        return SharedProbes(
            blocks=members,
            full=self.full,
            known=self._known,
            trace=trace,
            diagonal=diagonal,
            coupling=self.options.coupling,
            whole=self.whole,
            coupled=list(self.blocks),
            seed=self.seed,
            parameters=self.parameters,
            room=self.room.probes(self.full.numel, diagonal is not None),
            starts=self._density_estimators,
        )

    def _known(self) -> Mapping[str, Known] | None:
        """What the solvers know of each block; None until they and the densities are done."""
        if not all(task.done for task in self.tasks) or not all(
            estimator.done for estimator in self._density_estimators.values()
        ):
            return None
        known = {task.name: known_of(task) for task in self.tasks if task.name != FULL}  # it has no probes of its own
        shared = self._shared
        asked = [] if shared is None else [goal.method for goal in (shared.trace, shared.diagonal) if goal is not None]
        if asked and all(method == "auto" for method in asked):
            open_ones = {name: block for name, block in self.blocks.items() if not known.get(name, Known()).exact}
            for name, diagonal in self.diagonals(open_ones).items():
                known[name] = Known(diagonal=diagonal.to(beside(self.blocks[name], self.parameters)))
        return known

    def _signs(self, name: str, block: Block, kind: str) -> Any:
        place = beside(block, self.parameters)
        return lambda number: random_signs(block.numel, self.seed, f"({kind}) {name}", number, place)

    def _starts(self, name: str, block: Block) -> Any:
        """Random signs over sqrt(n): unit vectors whose products serve as probes of trace and diagonal as well."""
        signs = self._signs(name, block, "density")
        return lambda number: signs(number) / math.sqrt(block.numel)

    def _directions(self, name: str, block: Block, kind: str) -> Any:
        place = beside(block, self.parameters)
        return lambda number: random_unit(block.numel, self.seed, f"({kind}) {name}", number, place)

    # -- results ----------------------------------------------------------------------------------------------------

    def traced(self) -> dict[str, Block]:
        """The operators whose trace is asked for."""
        return self._operators() if self.options.trace is not None else {}

    def attach(self, spectra: dict[str, Spectrum], sampled: SamplingErrors) -> dict[str, Spectrum]:
        """The spectra with their estimates and sampling errors; refused blocks have none."""
        made = {}
        for name, spectrum in spectra.items():
            if spectrum.status.startswith("refused"):
                made[name] = spectrum
                continue
            trace = self._trace(name)
            if trace is not None and name in sampled.traces:
                trace = dataclasses.replace(trace, sampling_error=sampled.traces[name])
            errors = sampled.values.get(name, np.empty(0))
            made[name] = dataclasses.replace(
                spectrum,
                sampling_errors=errors if len(errors) else spectrum.sampling_errors,
                sampling_sums=sampled.sums.get(name, spectrum.sampling_sums),
                trace=trace,
                diagonal=self._diagonal(name),
                density=self._density(name, spectrum),
            )
        known = self._matrix_errors(spectra)
        return with_errors(made, known, summed=FULL not in self._traces, assembled=FULL not in self._diagonals)

    def overall(self, spectra: Mapping[str, Spectrum]) -> tuple[CouplingEstimate | None, list[Check]]:
        """The couplings, and the checks of one estimate against another."""
        coupling = self._coupling(spectra)
        return coupling, self._checks(spectra, coupling)

    def _checks(self, spectra: Mapping[str, Spectrum], coupling: CouplingEstimate | None) -> list[Check]:
        """Compare the densities' first two moments with trace and Frobenius norm from other probes."""
        made, agreeing = [], 0
        for name, spectrum in spectra.items():
            if spectrum.density is None or not spectrum.density.probes:
                continue
            trace = None if spectrum.trace is None else (spectrum.trace.value, spectrum.trace.standard_error)
            square = None
            if coupling is not None and name in coupling.blocks:
                place = coupling.blocks.index(name)
                norm, error = coupling.value[place, place], coupling.standard_error[place, place]
                square = (float(norm**2), float(2.0 * norm * error))
            agree, sentence = check_moments(spectrum.density, trace=trace, frobenius2=square, n=spectrum.numel)
            agreeing += agree and (trace is not None or square is not None)
            if not agree:
                made.append(Check("density moments", False, sentence, block=name))
        if agreeing:
            made.append(Check("density moments", True, f"agree with trace and Frobenius norm in {agreeing} operators"))
        return made

    def _coupling(self, spectra: Mapping[str, Spectrum]) -> CouplingEstimate | None:
        """The table of couplings, with the distances between densities where those were asked for."""
        if self._shared is None or self.options.coupling is None:
            return None
        found = self._shared.coupling_of()
        densities = [spectra[name].density for name in self.blocks if name in spectra]
        finished = [d for d in densities if d is not None and d.finished]
        if found is not None:
            found = couplings_with_errors(found, self._matrix_errors(spectra), self.row_rounding, self.blocks)
        if found is None or len(finished) != len(found.blocks):
            return found
        distances, errors = divergences(finished)
        return dataclasses.replace(found, divergence=distances, divergence_error=errors)

    def _matrix_errors(self, spectra: Mapping[str, Spectrum]) -> dict[str, MatrixRounding]:
        measured = {t.name: t.matrix_rounding for t in self.tasks if t.done and t.matrix_rounding is not None}
        return matrix_errors(spectra, measured)

    def measure_rows(self, meter: RoundingMeter) -> None:
        """Measure the rounding of the couplings, once they are known."""
        found = None if self._shared is None or self.options.coupling is None else self._shared.coupling_of()
        if found is not None:
            self.row_rounding = meter.measure_rows(self.full, float(np.linalg.norm(found.value)))

    def _trace(self, name: str) -> TraceEstimate | None:
        found = self._found_trace(name)
        return None if found is None else rounded(found, self._relative(name))

    def _found_trace(self, name: str) -> TraceEstimate | None:
        options = self.options.trace
        if options is None:
            return None
        if name in self._traces:
            return self._traces[name].estimate()  # type: ignore[no-any-return]
        if self._shared is not None and self._shared.trace is not None:
            return self._shared.trace_of(name) if self._shared.started else None
        return self._exact(name, options)  # type: ignore[no-any-return]

    def _relative(self, name: str) -> float:
        """Relative rounding error of a product, measured at the eigenvectors; else the worst of the other blocks."""
        measured = {
            task.name: task.rounding / task.candidates.norm
            for task in self.tasks
            if task.rounding is not None and task.candidates is not None and task.candidates.norm > 0.0
        }
        worst = max(measured.values(), default=0.0)
        return max(unit_rounding(self.eps, self.length), measured.get(name, worst))

    def _diagonal(self, name: str) -> Any:
        found = self._found_diagonal(name)
        if found is None:
            return None
        return dataclasses.replace(found, rounding=found.rounding * coarser(self._relative(name)))

    def _found_diagonal(self, name: str) -> Any:
        options = self.options.diagonal
        if options is None:
            return None
        block = self._operators()[name]
        if name in self._diagonals:
            return shaped(block, self._diagonals[name].estimate())
        if self._shared is not None and self._shared.diagonal is not None:
            return self._shared.diagonal_of(name) if self._shared.started else None
        exact = self._exact(name, options)
        return None if exact is None else shaped(block, exact)

    def _exact(self, name: str, options: Any) -> Any:
        """The exact estimate for a block that its solver read whole."""
        for task in self.tasks:
            if task.name == name and task.done and task.whole:
                known = known_of(task)
                return None if known.diagonal is None else options.exact(known.diagonal, known.lengths)
        return None

    def _density(self, name: str, spectrum: Spectrum) -> Any:
        options = self.options.density
        if options is None:
            return None
        return density_of(spectrum, options, self._densities.get(name), self._relative(name))
