"""The function to analyse, made of model, data and loss: L(theta) = (sum of losses) / (sum of counts)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerhess.errors import InputError, LayerhessWarning, checked_integer
from layerhess.objective import batches
from layerhess.objective.batch_norm import TiedNorms, said_of_split, tied_norms
from layerhess.objective.batches import Together
from layerhess.objective.dropout import active_dropout
from layerhess.objective.evaluation import Evaluation
from layerhess.objective.example_digests import Digests, by_example, drawn
from layerhess.objective.group import ALONE, Group, world
from layerhess.objective.interrupts import safe_point
from layerhess.objective.kernels import plain_kernels
from layerhess.objective.loaders import share_of
from layerhess.objective.losses import batch_loss, evaluation_of
from layerhess.objective.model_call import without_unnamed
from layerhess.objective.parameters import coarsest, copied, trainable
from layerhess.objective.plain_model import PlainTwin, needs_twin, unwrapped
from layerhess.objective.shares import counted_once, same_model
from layerhess.objective.snapshot import kept_attributes, preserved_random_state, restored
from layerhess.objective.what_it_is import SaysWhatItIs
from layerhess.objective.workers import refuse_repeated_examples

MODES = ("as-is", "eval")
STOP_GRADIENTS = ("refuse", "constant")
CONSTANT = "with stopped gradients held constant: derivatives of what is detached, or straight-through, are left out"
HALF = (torch.float16, torch.bfloat16)
Deal = Callable[[Iterator[Any], int], Iterator[Any]]


class Objective(SaysWhatItIs):
    """A model's loss over a whole data set, as sums and counts of its batches.

    Args:
        model: any ``torch.nn.Module``. Wrappers are taken off (torch.compile's, DataParallel, DistributedDataParallel,
            those of accelerate and Lightning Fabric), and sharded weights are gathered while they are analysed. It is
            never changed: all that an analysis touches is restored bit by bit.
        data: one batch (a tuple or a mapping), or a re-iterable of batches (a list, a DataLoader, ...). A batch is
            (inputs, target), with a tuple of inputs for several; a mapping; or whatever ``batch_loss`` understands.
        loss: a criterion on (output, target); ``lh.batch_loss(fn)``; or None for a Hugging Face model's own ``.loss``.
        batch_size: split larger batches along dimension 0, which needs less memory; the result is the same.
        mode: "as-is", or "eval" to put the model into eval mode during the analysis.
        stop_gradients: "refuse" a gradient that is not the derivative of the loss, or "constant": values that the graph
            does not differentiate (detached ones, those made under ``no_grad``) are constants. For a straight-through
            quantiser the numbers are then the curvature at the quantised weights.

    Attributes:
        model: the unwrapped model; where parts are wrapped or sharded, its plain twin. parameters: trainable floating
            point parameters by first name, in ``named_parameters()`` order, tied ones once. frozen: names left out.
            devices: where these lie; device: the first one's. origin: of a copy in another dtype, the parameters it was
            made of; else None. spares: ``batch_size`` is for want of memory, and was not asked for. together: which
            batches are joined; else None.

    Raises:
        InputError: unusable model, data or loss.

    >>> import torch, layerhess as lh
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> objective = lh.Objective(torch.nn.Linear(1, 1, bias=False), (x, y), torch.nn.MSELoss())
    >>> lh.Hessian(objective).to_dense()      # 2 * mean(x^2)
    tensor([[5.]])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: Any = None,
        *,
        batch_size: int | None = None,
        mode: str = "as-is",
        stop_gradients: str = "refuse",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"the model is {type(model).__name__}, not a torch.nn.Module",
                where="model",
                what_to_do="pass the module itself",
            )
        for name, value, known in (("mode", mode, MODES), ("stop_gradients", stop_gradients, STOP_GRADIENTS)):
            if value not in known:
                use = " or ".join(map(repr, known))
                raise InputError(f"unknown {name} {value!r}", where=name, what_to_do=f"use {use}")
        self.notes: list[str] = [CONSTANT] if stop_gradients == "constant" else []
        self.stop_gradients = stop_gradients
        self._given, said = unwrapped(model)
        self.notes += said
        self._twin = PlainTwin(self._given) if needs_twin(self._given) else None
        self.notes += self._twin.notes if self._twin else []
        self.model: nn.Module = self._twin.model if self._twin else self._given
        self.data = data = share_of(data, world().size, self._twin.copies if self._twin else 1)
        self.loss = loss
        self.batch_size = None if batch_size is None else checked_integer(batch_size, "batch_size", 1)
        self.mode = mode
        self.evaluation: Evaluation = evaluation_of(loss)
        batches.check_data(data, any_batch=not hasattr(self.evaluation, "criterion"))
        self.parameters, self.frozen = trainable(self.model)
        self.devices = tuple(dict.fromkeys(parameter.device for parameter in self.parameters.values()))
        self.device = self.devices[0]
        self.dtype = coarsest([p.dtype for p in self.parameters.values()])
        self.evaluation = self.evaluation.usable(self.device)
        self._note_compiled_parts()
        self._note(said_of_split(self.tied_norms, data, batch_size, world().size))
        self._warn_half_precision()
        self.origin: dict[str, nn.Parameter] | None = None
        self._depth = 0
        self._sampled = self._counted = self.spares = False
        self._deal: Deal | None = None
        self.together: Together | None = None

    # -- reading the data ---------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """The prepared batches (on the model's device, split by ``batch_size``), in the data's own order.

        Raises:
            InputError: a batch that ``batch_size`` cannot split. Exceptions of the data come through unchanged.
        """
        refilled = batches.may_refill(self.data)

        def pieces() -> Iterator[Any]:
            for raw in self._raw_batches():
                batch = batches.prepare(raw, self.device, refilled)
                whole = self.spares and batches.leading_size(batch) is None
                yield from batches.pieces(batch, None if whole else self.batch_size)

        given = pieces() if self._deal is None or not self.batch_size else self._deal(pieces(), self.batch_size)
        yield from given if self.together is None else batches.gathered(given, self.together)

    def _raw_batches(self) -> Iterator[Any]:
        """The batches as they come, but for what only the function of a batch_loss could use: arrays, other keys."""
        own = isinstance(self.evaluation, batch_loss)
        for raw in batches.iterate(self.data, arrays=not own):
            no_target = hasattr(self.evaluation, "criterion") and batches.is_mapping(raw) and "labels" not in raw
            batch, note = (raw, "") if own or no_target else without_unnamed(self.model, raw)
            self._note(note)
            yield batch

    def terms(self, batch: Any) -> tuple[Tensor, float]:
        """(loss sum with graph, 0-d; count) of one prepared batch, after a safe point. Call within :meth:`session`."""
        safe_point()
        return self.evaluation(self.model, batch)

    @property
    def group(self) -> Group:
        """The processes that hold the data, each a share of it; a sample is the same on all, so each has it alone."""
        return ALONE if self._sampled else world()

    @property
    def tied_norms(self) -> TiedNorms:
        """BatchNorm modules that will use the batch's own statistics: the split into batches then matters."""
        return tied_norms(self.model, self.mode)

    @property
    def random_modules(self) -> list[str]:
        """Names of modules whose dropout will be active."""
        return [] if self.mode == "eval" else active_dropout(self.model)

    @property
    def numel(self) -> int:
        """P, the number of trainable scalar parameters."""
        return sum(p.numel() for p in self.parameters.values())

    # -- variants -----------------------------------------------------------------------------------------------

    def with_mode(self, mode: str) -> Objective:
        """The same objective in another mode."""
        return self.varied(mode=mode)

    def with_batch_size(self, batch_size: int | None) -> Objective:
        """The same objective, split into batches of another size."""
        return self.varied(batch_size=batch_size)

    def with_stop_gradients(self, stop_gradients: str) -> Objective:
        """The same objective, where stopped gradients are refused or constants."""
        return self.varied(stop_gradients=stop_gradients)

    def varied(self, **changed: Any) -> Objective:
        """The same objective but for these arguments of its making."""
        given = {"model": self._given, "data": self.data, "loss": self.loss, "batch_size": self.batch_size}
        return Objective(**{**given, "mode": self.mode, "stop_gradients": self.stop_gradients, **changed})

    def to(self, device: str | torch.device) -> Objective:
        """The same objective on a copy of the model on ``device``.

        Raises:
            InputError: unknown or unavailable device.
        """
        try:
            target = torch.device(device)
            float(torch.zeros((), device=target))  # the meta device fails here: it holds no values
        except (RuntimeError, AssertionError, TypeError) as error:
            raise InputError(
                f"the device {device!r} cannot be used ({str(error).splitlines()[0]})",
                where="device",
                what_to_do="use 'cpu', or a device that torch sees, such as 'cuda:0'",
            ) from None
        if target == self.device:
            return self
        with self.whole_weights():
            model = copied(self.model).to(target)
        moved = self.varied(model=model)
        moved.evaluation = self.evaluation.to(self.dtype, target)
        return moved

    def cast(self, dtype: torch.dtype, data: list[Any]) -> Objective:
        """The same loss on a copy of the model and on ``data``, all in ``dtype``.

        Made in session it is in session too, and the copy is not restored at its end.

        Raises:
            Exception: whatever ``copy.deepcopy`` raises for a model that cannot be copied.
        """
        model = copied(self.model).to(dtype)
        made = Objective.__new__(Objective)
        made.__dict__.update(self.__dict__)
        made.model, made.data, made.dtype = model, [batches.cast(b, dtype) for b in data], dtype
        made.batch_size, made._sampled, made._deal, made.together = None, True, None, None
        made.parameters, made.frozen = trainable(model)
        made.evaluation, made.origin = self.evaluation.to(dtype, self.device), self.parameters
        return made

    def narrowed(self, data: list[Any]) -> Objective:
        """The same model and loss on other, already prepared batches; the model is shared."""
        made = copy.copy(self)
        made.data, made.batch_size, made._sampled, made._deal, made.together = data, None, True, None, None
        return made

    def joined(self, together: Together | None) -> Objective:
        """The same with batches of one kind joined (None: apart); the model is shared."""
        (made := copy.copy(self)).together = together
        return made

    def resized(self, batch_size: int | None, deal: Deal | None = None) -> Objective:
        """The same data in batches of at most ``batch_size`` examples (as it has them: None); the model is shared.

        Batches that cannot be cut stay whole. With ``deal``, batches are what it makes of these and their size.
        """
        made = copy.copy(self)
        made.batch_size, made.spares, made.together = batch_size, batch_size is not None, None
        made._deal = deal or self._deal
        return made

    def subset(self, examples: int, seed: int = 0) -> Objective:
        """The same objective on a fixed random subset of the examples (drawn without replacement by ``seed``).

        Args:
            examples: how many to keep; all are kept if there are fewer.
            seed: the same seed gives the same subset of the same examples, however batches and processes hold them.

        Raises:
            InputError: if ``examples`` < 1, or the batches cannot be split along dimension 0, or a loader's workers
                repeat examples.
        """
        examples = checked_integer(examples, "examples", 1)
        with preserved_random_state():
            kept, digests = self.group.tried(self._all_batches)
        told = self.group.gathered(np.concatenate([np.zeros(0, dtype=np.uint64), *digests]))
        before, total = sum(map(len, told[: self.group.rank])), sum(map(len, told))
        if total <= examples:
            return self
        chosen = drawn(np.concatenate(told), examples, seed) - before
        starts = np.cumsum([0, *map(len, digests)])
        data = []
        for batch, start, end in zip(kept, starts[:-1], starts[1:], strict=True):
            index = chosen[(chosen >= start) & (chosen < end)] - start
            if len(index):
                data.append(batches.take(batch, torch.from_numpy(index)))
        made = self.varied(data=data)
        made.notes.append(
            f"a random subset of {examples} of {total} examples (seed {seed}): the numbers are exact for the subset"
        )
        return made

    def _all_batches(self) -> tuple[list[Any], list[Digests]]:
        """All batches as they come, and the digests of their examples."""
        refuse_repeated_examples(self.data)
        kept = list(self._raw_batches())
        sizes = [batches.leading_size(batch, sparse=True) for batch in kept]
        if any(size is None for size in sizes):
            raise InputError(
                f"the examples of a batch cannot be told apart: {batches.uncut(kept[sizes.index(None)], sparse=True)}",
                where=f"batch {sizes.index(None)}",
                what_to_do="drop examples, or put the examples along dimension 0 of every tensor",
            )
        return kept, [by_example(batch) for batch in kept]

    # -- the state the model is in while being analysed -----------------------------------------------------------

    @contextmanager
    def session(self) -> Iterator[None]:
        """Put model and torch into the state for an evaluation, and restore both: :mod:`layerhess.objective.snapshot`.

        Gradients on, inference mode off, the caller's autocast off, MATH attention kernels (the fused ones have no
        second derivative), compiled code run eagerly, dense gradients of embeddings, no TF32, the requested mode.
        Re-entrant; inner sessions cost nothing.

        Raises:
            InputError: parameters were replaced, frozen, moved or cast since the objective was made; the ranks of a
                group have different weights.
        """
        if self._depth:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(self.group.together())
            stack.enter_context(self.whole_weights())
            self._refuse_changed_model()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(restored(self.model))
            self._count_once()
            said = stack.enter_context(plain_kernels(self.devices, self.model))
            for sentence in said:
                self._note(sentence)
            if self.mode == "eval":
                self.model.eval()
            self._note(same_model(self.model, self.evaluation, self.group))
            for module in self.model.modules():
                if isinstance(module, nn.Embedding):
                    module.sparse = False
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside it the model's weights have their values, where they are sharded too; a session is inside it."""
        return nullcontext() if self._twin is None else self._twin.filled()

    def original_loss(self, batch: Any) -> float | None:
        """The loss's sum by the user's own tensor parallel model, on all ranks together (in session); else None."""
        model = None if self._twin is None else self._twin.original
        if model is None:
            return None
        with torch.no_grad(), kept_attributes(model):
            return float(self.evaluation(model, batch)[0])

    @property
    def sharded(self) -> bool:
        """Whether the model's weights are shards, which are gathered in a session only."""
        return self._twin is not None and self._twin.sharded

    # -- refusals ---------------------------------------------------------------------------------------------

    def _count_once(self) -> None:
        if self._twin is not None and self._twin.copies > 1 and not (self._sampled or self._counted):
            self.data, said = counted_once(self.data, self.group)
            self._counted = True  # it reads all of the data
            self._note(said)

    def _note(self, sentence: str) -> None:
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def _note_compiled_parts(self) -> None:
        parts = [
            name or "(root)"
            for name, module in self._given.named_modules()
            if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
        ]
        if parts:
            self.notes.append(f"compiled parts of the model ({', '.join(parts[:3])}) run eagerly while it is analysed")

    def _refuse_changed_model(self) -> None:
        parameters, _ = trainable(self.model)
        same = list(parameters) == list(self.parameters) and all(
            parameters[name] is parameter for name, parameter in self.parameters.items()
        )
        dtype = coarsest([p.dtype for p in parameters.values()])
        if not same or dtype != self.dtype or next(iter(parameters.values())).device != self.device:
            odd = [n for n in {**self.parameters, **parameters} if parameters.get(n) is not self.parameters.get(n)]
            raise InputError(
                "the model's parameters were replaced, frozen, cast or moved after the Objective was made",
                where=", ".join(odd[:4]) or f"{self.dtype} on {self.device} became another dtype or device",
                what_to_do="make a new lh.Objective of the model as it is now",
            )

    def _warn_half_precision(self) -> None:
        if self.dtype not in HALF:
            return
        eps = torch.finfo(self.dtype).eps
        sentence = (
            f"the weights are {str(self.dtype).removeprefix('torch.')}: expect eigenvalues good to about "
            f"{100 * eps:.0%} of the largest; for better ones analyse model.float()"
        )
        warnings.warn(sentence, LayerhessWarning, stacklevel=3)
        self.notes.append(sentence)
