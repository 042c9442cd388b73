"""The table of a plan that is being made, row by row in a file, so that a stopped run can go on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis import identity
from layerhess.curvature.record_file import RecordFile
from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats
from layerhess.objective.objective import Objective
from layerhess.planning.measuring.meter import Measurement

KIND = "measured"
FLOAT_MODEL = "the float model"
SAME_LOSS = 1e-2  # of an example, relative to it and to the mean: another machine rounds otherwise


class RowsFile:
    """Measurements, by a name, in a hidden file beside the plan's folder; on one rank only.

    Args:
        path: the file; None keeps nothing. known: the identity of this run. resume: use what an earlier run of the same
            identity measured.

    Attributes:
        spared: forward passes that an earlier run made; with them counted, a run that goes on decides as one that was
            never stopped.

    Raises:
        InputError: a file that cannot be read, or that belongs to another run, where it was to be resumed.
    """

    def __init__(self, path: Path | None, objective: Objective, known: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._file: RecordFile | None = None
        self._found: dict[str, list[Measurement]] = {}
        self.spared = 0
        self._rows: list[int] | None = None
        self._group = objective.group
        if path is not None:
            if resume and path.exists():
                self._open(path, objective, known)
            else:
                try:
                    self._file = RecordFile.create(path, {"kind": "run", "identity": dict(known)}, time.monotonic)
                except OSError as error:
                    raise _unusable(path, f"it cannot be written ({error.strerror})") from error

    def _open(self, path: Path, objective: Objective, known: Mapping[str, Any]) -> None:
        try:
            self._file = RecordFile.open(path, time.monotonic)
            then = self._file.header(self._file.entries[0])["identity"]
        except (OSError, ValueError, KeyError) as error:
            self.close()
            raise _unusable(path, f"it cannot be read ({error})") from error
        differs = identity.difference(then, known, objective.dtype)
        if differs:
            self.close()
            raise another_run(path, differs)
        for entry in self._file.entries[1:]:
            header = self._file.header(entry)
            self._found[header["name"]] = _decoded(header, self._file.tensors(entry))

    def pair(self, losses: Floats, outputs: Sequence[int] | None) -> None:
        """Write down the float model's losses by example, or hold them against those that all else is paired with.

        Args:
            outputs: how many rows of the outputs of each batch are kept now; None where none are. What was measured
                with others, for want of memory, is not known.

        Raises:
            InputError: the same examples in another order.
        """
        self._rows = None if outputs is None else list(outputs)
        before = self._group.agreed(self._found.get(FLOAT_MODEL))
        if before is None:
            self.keep(FLOAT_MODEL, [Measurement(losses)])
        elif not _same_order(before[0].losses, losses):
            self.close()
            raise another_run(self.path or Path("out"), "its examples come in another order, or on other processes")

    def known(self, name: str, number: int, *, outputs: bool = False) -> list[Measurement] | None:
        """What was measured under this name, the same on all ranks; None if it was not.

        Args:
            outputs: changes of the outputs are wanted with it, of the rows that are kept now.
        """
        own = self._found.get(name)
        if own is not None and (len(own) != number or (outputs and any(self._of_other_rows(one) for one in own))):
            own = None
        found = self._group.agreed(own)
        self.spared += len(found or ())
        return found

    def _of_other_rows(self, measured: Measurement) -> bool:
        return [len(output) for output in measured.outputs] != self._rows

    def keep(self, name: str, measured: Sequence[Measurement]) -> None:
        """Write down what was measured.

        Raises:
            InputError: it cannot be written.
        """
        if self._file is None or self.path is None:
            return
        header, tensors = _encoded(name, measured)
        try:
            self._file.append(header, tensors)
        except OSError as error:
            raise _unusable(self.path, f"it cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Keep what is there, on the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """The plan is there: nothing is to be resumed."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _encoded(name: str, measured: Sequence[Measurement]) -> tuple[dict[str, Any], list[Tensor]]:
    tensors: list[Tensor] = []
    described = []
    for one in measured:
        arrays = [one.losses] + (
            [one.kl, one.predictions] if one.kl is not None and one.predictions is not None else []
        )
        tensors += [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        tensors += [output.contiguous() for output in one.outputs]
        described.append({"arrays": len(arrays), "outputs": len(one.outputs), "why": one.why})
    return {"kind": KIND, "name": name, "measured": described}, tensors


def _decoded(header: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[Measurement]:
    left = iter(tensors)
    found = []
    for described in header["measured"]:
        arrays = [next(left).numpy() for _ in range(described["arrays"])]
        outputs = tuple(next(left) for _ in range(described["outputs"]))
        kl, predictions = arrays[1:] if len(arrays) > 1 else (None, None)
        found.append(Measurement(arrays[0], kl, predictions, outputs, described["why"]))
    return found


def _same_order(then: Floats, now: Floats) -> bool:
    if then.shape != now.shape:
        return False
    level = SAME_LOSS * float(np.abs(now).mean()) if len(now) else 0.0
    return bool((np.abs(then - now) <= SAME_LOSS * np.abs(now) + level).all())


def another_run(path: Path, differs: str) -> InputError:
    """The refusal to go on with what another run left."""
    return InputError(
        f"the run that is to be resumed is another one: {differs}",
        where=str(path),
        what_to_do="give what it was given, choose another output folder, or begin anew without resume",
    )


def _unusable(path: Path, why: str) -> InputError:
    return InputError(
        f"the rows that were measured cannot be used: {why}",
        where=str(path),
        what_to_do="remove the file, or begin anew without resume",
    )
