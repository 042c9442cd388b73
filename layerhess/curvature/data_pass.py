"""Runs passes over the data: sums all requested products, and keeps batches' graphs between passes while they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.batch_graph import BatchGraph, GraphMaker
from layerhess.curvature.counters import Counters
from layerhess.curvature.device import beside, is_out_of_memory, solver_device, used_bytes
from layerhess.curvature.factors.mixed_graph import MixedGraph, MixedGraphs
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.journal import Journal
from layerhess.curvature.question import Question
from layerhess.curvature.request import Request as Request
from layerhess.curvature.same_data import changed, refuse_changed
from layerhess.curvature.smaller_pieces import in_pieces, note_on, too_large
from layerhess.curvature.time_unit import TimeUnit
from layerhess.curvature.totals import Listing, Totals, add_up
from layerhess.curvature.user_errors import as_runtime_errors
from layerhess.errors import InputError, LayerhessError, ProcessError, first_line
from layerhess.objective.batches import is_stable
from layerhess.objective.blocks import Block
from layerhess.objective.interrupts import safe_point
from layerhess.objective.objective import Objective

FULL = "(full)"
OVERWRITTEN = "modified by an inplace operation"  # as autograd says it
LOSS, COUNT, GRADIENT, FRESH = "loss", "count", "gradient", "fresh"  # kinds of sums in a pass
PRODUCT, FORM, TOUCHED = "product", "form", "touched"
TOGETHER = 16  # vectors of one request that are multiplied at once, where a graph gains by that


class DataPass:
    """Runs passes over an objective's data for a fixed set of parameters.

    Args:
        objective: in session for as long as the pass is used.
        names: the parameters any request may need.
        counters: counts the work. keep: bytes that kept graphs may take; 0 keeps none.
        checkpoint: called between batches; raises to stop (on an interrupt).
        make_graph: makes one batch's share of the matrix to multiply by; the Hessian's by default.
        time_unit: time one plain gradient of the first batch, for
            :attr:`layerhess.curvature.counters.Counters.gradient_seconds`.
        journal: of the run, where its passes are to be written down, or told again. largest: examples of the largest
            batch, where batches may be cut if memory runs out. listing: how what is listed by batch becomes entries.
    """

    def __init__(
        self,
        objective: Objective,
        names: list[str],
        counters: Counters,
        *,
        keep: float = 0.0,
        checkpoint: Callable[[], None] = safe_point,
        make_graph: GraphMaker = HessianGraph,
        time_unit: bool = False,
        journal: Journal | None = None,
        largest: int = 0,
        listing: Listing | None = None,
    ) -> None:
        self._largest, self.note = largest, ""
        self._listing = listing
        self.journal = Journal(None, counters) if journal is None else journal
        self._time_unit = TimeUnit(counters, time_unit)
        self.objective = objective
        self.counters = counters
        self._names = names
        self._checkpoint = checkpoint
        self._make_graph = make_graph
        self._kept: list[BatchGraph] = []
        self._kept_all = False
        self._planned = 0  # graphs to keep, as an earlier run did
        self._stable = is_stable(objective.data)
        self._budget = keep
        self._place = solver_device(objective.device)  # of sums that are no block's
        self._used, self.needed = 0.0, 0.0  # the latter: bytes to keep all graphs, where they were too many
        self.loss_sum = math.nan
        self.count = math.nan
        self.expected: tuple[float, float] | None = None
        self.gradient_norm = math.nan
        self.seconds = math.nan  # of the latest pass
        self.counts: list[float] = []  # of the latest pass, one a batch, or an entry of the listing
        self.quadratics: dict[str, Tensor] = {}  # of the latest pass: (batches, s, len(request.quadratic)), not divided
        self.touched: set[str] = set()  # blocks whose gradient autograd found to depend on them, in some batch

    def run(self, requests: Mapping[str, Request]) -> dict[str, Tensor]:
        """Sum the products of every batch, divided by the total count.

        Returns:
            For each key the (s, P_b) float64 products with the matrix of the mean loss (the Hessian by default), where
            the request's vectors are.

        Raises:
            InputError: the data changed or ran out between passes; out of memory (the message names a size that fits).
            CheckError: the loss of the whole data changed between passes.
        """

        def share(graph: BatchGraph, totals: Totals) -> int:
            for key, request in requests.items():
                self.multiply(graph, key, request, totals)
            return 0

        totals = self.collect(share, requests)
        self.touched |= totals.totals(TOUCHED).keys()
        self.quadratics = {key: torch.stack(totals.listed((FORM, key))) for key, r in requests.items() if r.quadratic}
        if self.counters.phase == "solve":
            self.counters.full_products += sum(len(r.vectors) for r in requests.values() if r.block.name == FULL)
        sums = totals.totals(PRODUCT)
        for key, total in sums.items():
            total = sums[key] = total.to(solver_device(requests[key].vectors.device))
            total /= self.denominator
        return sums

    def diagonals(self, blocks: Mapping[str, Block]) -> dict[str, Tensor]:
        """diag(A_bb), (P_b,) float64, of the blocks whose factors give it directly; the others are absent."""
        if not isinstance(self._make_graph, MixedGraphs):
            return {}

        def share(graph: BatchGraph, totals: Totals) -> int:
            for key, block in blocks.items():
                if key in totals.dropped:
                    continue
                parts = graph.diagonal(block.parameters) if isinstance(graph, MixedGraph) else None
                if parts is None:
                    totals.drop(key, "a batch has no factors for it")
                else:
                    totals.add(key, torch.cat([part.reshape(-1).double().cpu() for part in parts]))
            return 0

        totals = self.collect(share, about=f"diagonals of {list(blocks)}")
        return {key: totals.total(key) / self.denominator for key in blocks if key not in totals.dropped}

    def collect(
        self,
        share: Callable[[BatchGraph, Totals], int],
        requests: Mapping[str, Request] = MappingProxyType({}),
        about: str = "products",
    ) -> Totals:
        """Run one pass over the data and add up what ``share`` takes from every batch's graph.

        Args:
            share: adds to the totals; returns the bytes that it keeps in addition to the graph. requests: what the
                graphs are made for, where that is known. about: what the sums are, for the journal.

        Raises:
            InputError, CheckError: see :meth:`run`.
        """
        asked = None
        if self.journal.active or self.objective.group.size > 1:
            parts = (part for key in requests for part in (key, *requests[key].parts))
            by_batch = any(request.quadratic for request in requests.values())
            asked = Question.of([about, *parts], by_batch, nearly=self.journal.active)  # ranks compare every bit
        start = self.counters.clock()
        group = self.objective.group
        if self.objective.together is not None:
            try:
                return group.tried(lambda: self._collect(share, requests, asked))
            except ProcessError:
                raise
            except (LayerhessError, RuntimeError, MemoryError) as error:  # the model may take no such batches
                self._take_apart(error)
            finally:
                self.seconds = self.counters.clock() - start
        try:  # memory may run out on one rank while it takes in what the others have: then all make smaller pieces
            return group.tried(lambda: self._collect(share, requests, asked))
        except ProcessError:
            raise
        except (RuntimeError, MemoryError) as error:
            # A model that writes into its own buffers spoils the kept graphs of earlier batches: then none is kept.
            spoilt = OVERWRITTEN in str(error) and bool(self._budget or self._kept)
            if not any(group.gathered(spoilt or is_out_of_memory(error))):
                raise
        finally:
            self.seconds = self.counters.clock() - start
        self.release()
        self._budget, self._planned = 0.0, 0
        if not requests:
            return self._collect(share, requests, asked)

        def attempt(objective: Objective) -> Totals:
            self._resize(objective.batch_size)
            return self._collect(share, requests, asked)

        return in_pieces(self.objective, attempt, lambda: self._largest, lambda: self._too_large(requests))[0]

    def _too_large(self, requests: Mapping[str, Request]) -> InputError:
        key = max(requests, key=lambda k: requests[k].block.numel)
        request = replace(requests[key], vectors=requests[key].vectors[:1])

        def attempt(batch: Any) -> None:
            graph = self._make_graph(self.objective, batch, self._names, self.counters)
            self.multiply(graph, key, request, Totals(self._place))

        return too_large(self.objective, attempt)

    def _take_apart(self, error: Exception | None = None) -> None:
        """Process every batch by itself from now on."""
        self.release()
        self._planned = 0
        self.objective = self.objective.joined(None)
        if error is not None:
            said = self.objective.group.agreed(first_line(error))
            self.note = f"joined batches failed ({said}), so that each was processed by itself"

    def _told_to_all(self) -> AbstractContextManager[None]:
        return nullcontext() if self.objective.together is None else as_runtime_errors()

    def _resize(self, size: int | None) -> None:
        """Process so many examples at a time from now on."""
        if size != self.objective.batch_size:
            self.objective = self.objective.resized(size)
            self.note = note_on(size)

    def graphs_apart(self) -> Iterator[BatchGraph]:
        """New graphs of the batches as the user has them, none of which is kept."""
        objective = self.objective.joined(None)
        for batch in objective.batches():
            yield self._make_graph(objective, batch, self._names, self.counters)

    def release(self) -> None:
        """Drop all kept graphs."""
        self._kept.clear()
        self._kept_all = False
        self._used = 0.0

    @property
    def kept(self) -> int:
        """How many batches' graphs are held."""
        return max(len(self._kept), self._planned)

    def _collect(
        self, share: Callable[[BatchGraph, Totals], int], requests: Mapping[str, Request], asked: Question | None
    ) -> Totals:
        fresh = not self._kept_all

        def taken(graph: BatchGraph, totals: Totals) -> None:
            totals.add(LOSS, graph.loss_sum)
            totals.add(COUNT, graph.count)
            totals.append(COUNT, graph.count)
            totals.add(FRESH, int(fresh))
            # Before the products: factors know the gradient as long as nobody has asked for an exact graph.
            if fresh and math.isnan(self.gradient_norm) and self.counters.phase not in ("checks", "rounding"):
                for name, part in graph.gradient.items():
                    if part is not None:
                        totals.add((GRADIENT, name), part.detach().double())
            self._used -= share(graph, totals)

        def whole(graph: BatchGraph, totals: Totals) -> None:
            with self._told_to_all():
                taken(graph, totals)

        def made() -> Totals:
            totals = add_up(
                self._graphs(requests), whole, group=self.objective.group, checkpoint=self._checkpoint,
                device=self._place, listing=self._listing, asked=asked.exact if asked else "",
            )  # fmt: skip
            if fresh and self.expected and self.objective.together is not None:  # before the journal has it
                refuse_changed(self.objective, (totals.total(LOSS), totals.total(COUNT)), self.expected)
            return totals

        try:
            totals, told = self.journal.once(asked, made, self._place, self._state)
        except BaseException:
            self.release()  # which batches are kept is only known after a whole pass
            raise
        if told:  # else others made it, who had other batches
            self._take_up(told)
        self.counts = totals.listed(COUNT)
        try:
            self._check_totals(totals.total(LOSS), totals.total(COUNT), totals.total(FRESH) > 0)
        except LayerhessError:
            self.journal.spoilt = True
            raise
        if self._time_unit.open and told is None:
            self._time_unit.settle(self.objective, self.count)
        if gradient := totals.totals(GRADIENT):
            self.gradient_norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values())) / self.denominator
        if self.counters.phase == "solve":
            self.counters.passes += 1
        return totals

    def _state(self) -> dict[str, Any]:
        """What a pass leaves behind beside its sums, as JSON types."""
        return {"kept": len(self._kept), "open": self._budget > 0.0, "needed": self.needed,
                "unit": self.counters.gradient_seconds, "pieces": self.objective.batch_size,
                "together": self.objective.together, "note": self.note}  # fmt: skip

    def _take_up(self, state: Mapping[str, Any]) -> None:
        """Go on as after a pass that left this state: the next one keeps the same graphs."""
        if state.get("together") is None and self.objective.together is not None:
            self._take_apart()
        self._planned, self.needed, self.note = state["kept"], state["needed"], self.note or state.get("note", "")
        self._budget = self._budget if state["open"] else 0.0
        sizes = [size for size in (state["pieces"], self.objective.batch_size) if size is not None]
        self._resize(min(sizes, default=None))  # memory may have run out since for what fitted then
        self.counters.gradient_seconds = state["unit"]
        self._time_unit.open = self._time_unit.open and math.isnan(state["unit"])

    @property
    def denominator(self) -> float:
        """What the sums are divided by: the total count, or 1 for reduction='sum'."""
        return 1.0 if self.objective.evaluation.is_sum else self.count

    def multiply(self, graph: BatchGraph, key: str, request: Request, totals: Totals) -> None:
        """Add a batch's products; list its quadratic forms (s, len(request.quadratic)) separately."""
        block, image = request.block, request.image
        parameters = self.objective.parameters
        place = beside(image, parameters)
        totals.open((PRODUCT, key), len(request.vectors), image.numel, device=place)
        forms = torch.zeros((len(request.vectors), len(request.quadratic)), dtype=torch.float64)
        for start in range(0, len(request.vectors), TOGETHER):
            exact = block.split(request.vectors[start : start + TOGETHER])
            parts = {
                name: part.to(dtype=parameters[name].dtype, device=parameters[name].device)
                for name, part in exact.items()
            }
            safe_point()
            products = graph.products(block.parameters, parts, image.parameters)
            stop, offset = start + len(exact[block.parameters[0]]), 0
            inner: dict[str, Tensor] = {}
            for name, part, shape in zip(image.parameters, products, image.shapes, strict=True):
                size = shape.numel()
                if part is not None:
                    if request.rows is None:
                        totals.add((TOUCHED, block.name), 1)
                    flat = part.reshape(stop - start, size).to(place)
                    totals.add((PRODUCT, key), flat, slice(start, stop), slice(offset, offset + size))
                    if request.quadratic and name in exact:
                        own = exact[name].reshape(stop - start, size).to(place)
                        inner[name] = (flat.double() * own).sum(dim=1).cpu()
                offset += size
            for column, member in enumerate(request.quadratic):
                for name in member.parameters:
                    if name in inner:
                        forms[start:stop, column] += inner[name]
        if request.quadratic:
            totals.append((FORM, key), forms)

    def _graphs(self, requests: Mapping[str, Request] = MappingProxyType({})) -> Iterator[BatchGraph]:
        """Kept graphs first, then new ones. Those that fit are kept; the others are made for the requests only.

        If batches may come in another order in the next pass, either all are kept or none.
        """
        make = all_blocks = self._make_graph
        if requests and not self._budget and isinstance(make, MixedGraphs):
            make = make.asked(request.block.parameters for request in requests.values())
        yield from list(self._kept)
        if self._kept_all:
            return
        skip = len(self._kept)
        number = 0
        all_kept = True
        for number, batch in enumerate(self.objective.batches(), 1):
            if number <= skip:
                continue
            with self._told_to_all():
                if number == 1 and self._time_unit.open:
                    self._time_unit.measure(self.objective, batch, [self.objective.parameters[n] for n in self._names])
                before = used_bytes(*self.objective.devices)
                planned = number <= self._planned
                graph = (all_blocks if planned else make)(self.objective, batch, self._names, self.counters)
            yield graph
            # Measured after the products, since what double backward saves belongs to the graph. A process that reuses
            # freed memory does not grow, so the graph's own figure counts as well.
            self._used += max(0.0, used_bytes(*self.objective.devices) - before, float(graph.nbytes))
            if planned or (self._budget and all_kept and self._used < self._budget):
                self._kept.append(graph)
            else:
                all_kept = False
                if not self._stable:
                    self._kept.clear()
            del graph
        if number < skip:
            self.journal.spoilt = True
            raise changed("it has fewer batches than at the first")
        self._kept_all = all_kept and number > 0
        if not all_kept and self._budget:
            self.needed, self._budget = self._used, 0.0  # decided once: later passes keep exactly these

    def _check_totals(self, loss_sum: float, count: float, fresh: bool) -> None:
        if not self.counts or (count == 0.0 and not self.objective.evaluation.is_sum):
            raise (
                changed("it is empty")
                if self.expected
                else InputError("the data is empty", where="data", what_to_do="give at least one example that counts")
            )
        self.loss_sum, self.count = loss_sum, count
        if self.expected is None or not fresh:
            self.expected = self.expected or (loss_sum, count)
            return
        refuse_changed(self.objective, (loss_sum, count), self.expected)
