"""Judges the sample's derivatives by differences: gradients by the loss, products by gradients, J by the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.checks.findings import SelfCheck
from layerhess.checks.finite_differences import AGREEMENT, finite_differences
from layerhess.checks.forward_trace import QUANTISER, Trace, trace
from layerhess.checks.gradient import COARSE, LIMIT, GradientCheck
from layerhess.checks.jacobian import Moves, disagreements
from layerhess.checks.silent_tensors import speaking_batches
from layerhess.checks.stopped_values import left_out
from layerhess.checks.survey import Survey
from layerhess.checks.suspects import DIFFERENCES, FIRST_DERIVATIVE, failure, gradient_failure
from layerhess.curvature.autograd_graph import coarsest_dtype
from layerhess.curvature.batch_graph import GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.matrices import CurvatureMatrix
from layerhess.objective import batches
from layerhess.objective.blocks import Block, make_block
from layerhess.objective.objective import Objective
from layerhess.results.record import Check

# Of a product that should be symmetric, relative: suspicious is measured again in float64, wrong is refused.
SUSPICIOUS = {torch.float64: 1e-7, torch.float32: 1e-5}
WRONG = {torch.float64: 1e-7, torch.float32: 2e-3}
WRONG_IN_FLOAT64 = 1e-7


@dataclass(frozen=True)
class Derivatives:
    """The derivatives of an objective on its sample; what is wrong goes into ``found``.

    Attributes:
        make_copy: the same loss on the samples in float64; None where there is no such copy.
        blocks: those to analyse. full: of all parameters.
    """

    objective: Objective
    surveyed: Survey
    make_copy: Callable[[], Objective | None]
    blocks: Mapping[str, Block]
    full: Block
    seed: int
    found: SelfCheck
    counters: Counters

    def check_gradient(self) -> None:
        """The gradient is the derivative of the loss (first derivative)."""
        if self.objective.stop_gradients == "constant":
            self._passed(FIRST_DERIVATIVE, "not checked: stopped gradients are held constant, as asked for")
            return
        surveyed = self.surveyed
        # Of little data all is looked at.
        examples = surveyed.measured.pieces if surveyed.measured.whole else surveyed.samples
        check = self._gradient_of(examples)
        seen = check.disagreement()
        silent = () if seen.tensors or surveyed.measured.whole else seen.silent
        if silent := self.objective.group.agreed(silent):  # all ranks look at all the data, or none
            for batch in speaking_batches(self.objective, silent, self.counters):
                further = self._gradient_of([batch]).disagreement()
                if further.tensors:
                    seen, examples = further, [batch]
                    break
        if seen.tensors and check.coarsest == torch.float32:
            further = check.far_away()
            seen = further if further.worst is not None and not further.tensors else seen
        if not seen.tensors and (seen.worst is None or seen.doubt > COARSE):
            # It may be a staircase, of which large steps show the slope.
            seen = replace(seen, tensors=self._unseen(check, seen.worst is None))
        if check.coarsest not in LIMIT:
            self._passed(FIRST_DERIVATIVE, f"not applicable: the loss is computed in {check.coarsest}")
            return
        self.found.culprits.update(dict.fromkeys(seen.tensors, "not the gradient of the loss"))
        graph = self._suspect_graph(examples) if seen.tensors else self.found.trace
        for key, block in self.blocks.items():
            members = {name: seen.tensors[name] for name in block.parameters if name in seen.tensors}
            if members and key not in self.found.failed:
                self.found.failed[key] = gradient_failure(
                    self.objective, key, list(members), graph, max(members.values())
                )
        if seen.worst is None and not seen.tensors:
            self._passed(FIRST_DERIVATIVE, "not judged: no step shows the derivative of this loss")
        elif not seen.tensors:
            self._passed(FIRST_DERIVATIVE, f"the gradient agrees with differences of the loss to {seen.worst:.1e}")

    def _unseen(self, check: GradientCheck, nothing: bool) -> dict[str, float]:
        """Parameters whose gradient is not to be believed, though differences convict none (or show ``nothing``)."""
        names, seen = list(self.full.parameters), self.found.trace
        # torch's quantisers let nothing through, and nor does a user's function; float64 would show what it is.
        opaque = any(QUANTISER in stop for stop in seen.stops)
        if not opaque and nothing and seen.custom and check.coarsest == torch.float32:
            further = check.far_away()
            opaque = further.worst is None or bool(further.tensors)
        if not opaque:
            names = list(left_out(check.objective, names, self.counters)) if seen.stops else []
        return dict.fromkeys(names, math.inf)

    def _suspect_graph(self, examples: list[Any]) -> Trace:
        """Of the sample, or of the first of these batches where something takes values from autograd, if that shows."""
        traced = (trace(self.objective, batch) for batch in examples)
        known = self.found.trace
        return known if known.custom or known.stops else next((t for t in traced if t.custom or t.stops), known)

    def _gradient_of(self, examples: list[Any]) -> GradientCheck:
        copied = self.make_copy()
        judge = self.objective if copied is None else copied
        judge = judge.narrowed(
            examples if copied is None else [batches.cast(batch, torch.float64) for batch in examples]
        )
        return GradientCheck(judge, list(self.full.parameters), self.seed, self.counters)

    def check_products(self, make_graph: GraphMaker = HessianGraph) -> None:
        """Hessian products agree with differences of gradients.

        Where the network has kinks only if a custom function, or a value taken away from autograd, gives cause: what is
        made of torch's own operations is symmetric, or caught as asymmetric.
        """
        seen = self.found.trace
        copied = self._comparable()
        if copied is None:
            return
        if not seen.smooth and not seen.custom and not seen.stops:
            self._passed(DIFFERENCES, "not applicable: the network has kinks (ReLU-like)")
            return
        kinks = not seen.smooth or bool(seen.custom)  # a custom function may have any
        if kinks and _coarsest(copied) != torch.float64:
            self._passed(DIFFERENCES, "not applicable: the network has kinks, and computes in low precision")
            return
        # A row holds the couplings as well, so tensors that are known to be wrong do not move.
        right = {name: p for name, p in self.objective.parameters.items() if name not in self.found.culprits}
        if not right:
            return
        tensors = {name: make_block(name, {name: p}) for name, p in right.items()}
        judged, step = finite_differences(
            copied,
            copied.data[0],
            tensors,
            make_block("(right)", right),
            self.seed,
            self.counters,
            kinks,
            make_graph,
        )
        wrong = sorted((name for name, off in judged.items() if off > AGREEMENT), key=judged.__getitem__, reverse=True)
        figures = {name: f"off by {judged[name]:.1e} from finite differences" for name in wrong}
        failed = self.fail_tensors(DIFFERENCES, figures)
        self.found.checks.extend(failed.values())
        good = [
            key for key, block in self.blocks.items()
            if key not in self.found.failed and any(name in judged for name in block.parameters)
        ]  # fmt: skip
        if good:
            agreement = max(step, *(off for name, off in judged.items() if name not in figures), 0.0)
            self._passed(
                DIFFERENCES,
                f"products agree with differences of gradients to {agreement:.1e} in {len(good)} operators "
                "(float64 copy)",
            )

    def check_jacobian(self, curvature: CurvatureMatrix) -> None:
        """Products with the Jacobian agree with its transpose, and with differences of the output."""
        coarsest = self.found.trace.coarsest
        names = list(self.full.parameters)
        make, seed, counters = curvature.make_graph, self.seed, self.counters
        off = disagreements(self.objective, self.surveyed.sample, names, make, seed, counters)
        limit = WRONG.get(coarsest, 0.3)
        if any(not figure <= SUSPICIOUS.get(coarsest, 0.0) for figure in off.values()):
            copied = self.make_copy()
            if copied is not None and self.objective.dtype != torch.float64:
                off = disagreements(copied, copied.data[0], names, make, seed, counters)
                limit = WRONG_IN_FLOAT64 if _coarsest(copied) == torch.float64 else limit
        wrong = {
            name: f"off by {figure:.1e} from the transposed one"
            if math.isfinite(figure)
            else f"NaN or infinite in batch {self.surveyed.places[0]}"
            for name, figure in off.items()
            if not figure <= limit
        }
        if off and not wrong:
            detail = f"products with J and with its transpose agree to {max(off.values()):.1e} in {len(off)} tensors"
            self._passed("transpose", detail)
        self.fail_tensors("transpose", wrong)
        if not self.found.trace.smooth:
            self._passed(DIFFERENCES, "not applicable: the network has kinks (ReLU-like)")
        elif (copied := self._comparable()) is not None:
            self._check_moves(Moves(copied, copied.data[0], self.full, make, seed, counters), names)

    def fail_tensors(self, name: str, figures: Mapping[str, str]) -> dict[str, Check]:
        """Fail every block that has one of these tensors (worst first) and did not fail before; those checks."""
        failed = {}
        for key, block in self.blocks.items():
            members = [tensor for tensor in figures if tensor in block.parameters]
            zero = key in self.found.zero_suspects and key != FULL
            if members and key not in self.found.failed and not zero:
                failed[key] = failure(name, self.objective, key, members, self.found.trace, figures[members[0]])
        self.found.failed.update(failed)
        self.found.culprits.update(figures)
        return failed

    def _check_moves(self, moves: Moves, names: list[str]) -> None:
        off = moves.disagreement(names)
        if off is not None and off <= AGREEMENT:
            figure = max(off, moves.error)
            detail = f"products with J agree with differences of the output to {figure:.1e} (float64 copy)"
            self._passed(DIFFERENCES, detail)
        elif off is not None:
            each = {name: alone for name in names if (alone := moves.disagreement([name])) is not None}
            wrong = {n: f"off by {alone:.1e} from finite differences" for n, alone in each.items() if alone > AGREEMENT}
            whole = dict.fromkeys(names, f"part of one that is off by {off:.1e} from finite differences")
            self.fail_tensors(DIFFERENCES, wrong or whole)

    def _comparable(self) -> Objective | None:
        """The float64 copy, where differences of gradients or outputs can be compared; says why not, else."""
        why, copied = "", None
        if self.objective.stop_gradients == "constant":
            why = "differences move what is to be held constant"
        elif (copied := self.make_copy()) is None:
            why = "no float64 copy of the model"
        if why:
            self._passed(DIFFERENCES, f"not applicable: {why}")
        return copied

    def _passed(self, name: str, detail: str) -> None:
        self.found.checks.append(Check(name, True, detail))


def _coarsest(objective: Objective) -> torch.dtype:
    return coarsest_dtype(objective.terms(objective.data[0])[0].grad_fn, objective.dtype)
