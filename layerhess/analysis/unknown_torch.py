"""A torch that nobody has checked has to pass the self-test of second derivatives before it is used, once a process."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch

from layerhess.analysis import self_test
from layerhess.errors import CheckError
from layerhess.objective import torch_version

TESTED = ("cpu", "cuda")  # devices that compute in float64; for others the CPU's answer has to do

_lock = threading.Lock()
_faults: dict[str, tuple[str, ...]] = {}  # kind of device -> what is wrong with this torch there


def refuse_unless_right(devices: Iterable[torch.device]) -> None:
    """Refuse a torch that differentiates wrongly on one of these devices.

    A release in :data:`layerhess.objective.torch_version.CHECKED` is taken as it is, where it was checked. Any other
    has to have the private names that are used, and to pass :mod:`layerhess.analysis.self_test`: seconds, once a
    process and kind of device.

    Raises:
        CheckError: saying what is wrong.
    """
    for device in devices:
        tested = device if device.type in TESTED else torch.device("cpu")
        if torch_version.is_checked(tested.type):
            continue
        with _lock:
            if tested.type not in _faults:
                _faults[tested.type] = _found(tested)
        if faults := _faults[tested.type]:
            raise CheckError(
                f"torch {torch.__version__} is not one of those that were checked, and {faults[0]}",
                where=str(tested),
                what_to_do=f"install one that was checked ('{torch_version.REQUIREMENT}'); layerhess doctor shows more",
                details=faults[1:],
            )


def _found(device: torch.device) -> tuple[str, ...]:
    """What is wrong, in one sentence, and more lines; nothing where all is right."""
    if gone := torch_version.missing():
        return f"it lacks what layerhess uses: {', '.join(gone[:3])}", *gone
    wrong = [finding for finding in self_test.run(device) if not finding.ok]
    if not wrong:
        return ()
    names = ", ".join(finding.name for finding in wrong[:4])
    return f"its derivatives are not right: {names}", *(f"{finding.name}: {finding.outcome}" for finding in wrong)
