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
from layerhess.objective.objective import Objective
from layerhess.planning.measuring import Measurement

KIND = "measured"


class RowsFile:
    """Measurements, by a name, in a hidden file beside the plan's folder; on one rank only.

    Args:
        path: the file; None keeps nothing. known: the identity of this run. resume: use what an earlier run of the same
            identity measured.

    Raises:
        InputError: a file that cannot be read, or that belongs to another run, where it was to be resumed.
    """

    def __init__(self, path: Path | None, objective: Objective, known: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._file: RecordFile | None = None
        self._found: dict[str, list[Measurement]] = {}
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
            raise _unusable(path, f"it cannot be read ({error})") from error
        differs = identity.difference(then, known, objective.dtype)
        if differs:
            self._file.close()
            raise InputError(
                f"the run that is to be resumed is another one: {differs}",
                where=str(path),
                what_to_do="give what it was given, choose another output folder, or begin anew without resume",
            )
        for entry in self._file.entries[1:]:
            header = self._file.header(entry)
            self._found[header["name"]] = _decoded(header, self._file.tensors(entry))

    def known(self, name: str, number: int) -> list[Measurement] | None:
        """What was measured under this name, the same on all ranks; None if it was not."""
        found = self._group.agreed(self._found.get(name))
        return found if found is not None and len(found) == number else None

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


def _unusable(path: Path, why: str) -> InputError:
    return InputError(
        f"the rows that were measured cannot be used: {why}",
        where=str(path),
        what_to_do="remove the file, or begin anew without resume",
    )
