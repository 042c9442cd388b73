"""Applies command-line options to an Objective before it is analysed: checkpoint, device, subset, batch size."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from layerhess.analysis.estimate_options import estimate_option
from layerhess.errors import InputError
from layerhess.objective.objective import Objective

_MOST_NAMES = 3


def prepared(
    objective: Objective,
    *,
    checkpoint: Path | None = None,
    device: str | None = None,
    eval_mode: bool = False,
    stop_gradients: str | None = None,
    examples: int | None = None,
    examples_seed: int = 0,
    batch_size: int | None = None,
) -> Objective:
    """The objective with weights from ``checkpoint``, on ``device``, in eval mode, on a subset, in smaller batches.

    Raises:
        InputError: from any of these, naming the option.
    """
    if checkpoint is not None:
        if objective.sharded:
            raise InputError(
                "the weights are sharded, and the file has whole ones",
                where="--checkpoint",
                what_to_do="load it in the factory, before the model is sharded",
            )
        load_checkpoint(objective.model, checkpoint)
    if eval_mode:
        objective = objective.with_mode("eval")
    if stop_gradients is not None:
        objective = objective.with_stop_gradients(stop_gradients)
    if device is not None:
        objective = objective.to(device)
    if examples is not None:
        objective = objective.subset(examples, examples_seed)
    if batch_size is not None:
        objective = objective.with_batch_size(batch_size)
    return objective


def block_scheme(given: Sequence[str]) -> str | dict[str, list[str]]:
    """The ``blocks`` argument from the values of ``--blocks``: one scheme name, or any number of NAME=GLOB.

    Raises:
        InputError: both kinds mixed, several schemes, or an empty name or pattern.

    >>> block_scheme(["weight"]), block_scheme(["head=head.*", "body=layer*", "body=stem*"])
    ('weight', {'head': ['head.*'], 'body': ['layer*', 'stem*']})
    """
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    groups: dict[str, list[str]] = {}
    for entry in given:
        name, equals, pattern = entry.partition("=")
        if not equals or not name or not pattern:
            raise InputError(
                f"{entry!r} is not NAME=GLOB",
                where="--blocks",
                what_to_do="give one scheme (--blocks weight), or only groups (--blocks head='head.*' --blocks ...)",
            )
        groups.setdefault(name, []).append(pattern)
    return groups


def number_or_none(given: str, flag: str) -> float | None:
    """The number in a flag; None for "none".

    >>> number_or_none("0.05", "--exclude"), number_or_none("none", "--exclude")
    (0.05, None)
    """
    if given.lower() == "none":
        return None
    try:
        return float(given)
    except ValueError:
        raise InputError(f"{flag} is {given!r}", where=flag, what_to_do='give a number above 0, or "none"') from None


def names_or_none(given: Sequence[str]) -> str | list[str] | None:
    """The names of a flag that may be given several times; None for "none", and "auto" alone as it is.

    >>> names_or_none(["layers.*", "head"]), names_or_none(["auto"]), names_or_none(["none"])
    (['layers.*', 'head'], 'auto', None)
    """
    if len(given) == 1 and given[0].lower() in ("auto", "none"):
        return "auto" if given[0].lower() == "auto" else None
    return list(given)


_FLAGS = {
    ("trace", "rel"): "--trace-tol",
    ("trace", "method"): "--trace-method",
    ("diagonal", "max_probes"): "--diagonal-probes",
    ("density", "probes"): "--density-probes",
    ("density", "steps"): "--density-steps",
    ("density", "axis"): "--density-axis",
    ("coupling", "probes"): "--coupling-probes",
}


def estimate(kind: str, asked: bool, **given: Any) -> Any:
    """The option of an estimate, see :func:`layerhess.analysis.estimate_options.estimate_option`.

    An error names the flag that was typed.

    >>> estimate("trace", False, rel=0.0)
    Traceback (most recent call last):
        ...
    layerhess.errors.InputError: --trace-tol is 0.0. Where: --trace-tol. What to do: use a number > 0, such as 0.02.
    """
    try:
        return estimate_option(kind, asked, **given)
    except InputError as error:
        field = error.where.partition("=")[0]
        flag = _FLAGS.get((kind, field), field)
        message = error.message.replace(f"{field} is ", f"{flag} is ")
        raise InputError(message, where=flag, what_to_do=error.what_to_do.replace(f"{field}=", f"{flag} ")) from None


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights from a safetensors file into ``model``, strictly: every name and every shape must agree.

    Tied tensors, which such files hold once, count as present under all their names.

    Raises:
        InputError: no such file, not safetensors, or names or shapes that do not fit (a few are listed).
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}", where="--checkpoint", what_to_do="check the path")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        advice = "save the weights with safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')"
        if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
            advice = (
                "pickled checkpoints can execute code and are not read: load it yourself in the factory, or " + advice
            )
        raise InputError(
            f"{path} is not a safetensors file ({error})", where="--checkpoint", what_to_do=advice
        ) from None
    expected = model.state_dict()
    _refuse_mismatch(expected, tensors, path)
    with torch.no_grad():
        model.load_state_dict(tensors, strict=False)


def _refuse_mismatch(expected: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    provided = {_identity(expected[name]) for name in given if name in expected}
    missing = [n for n, t in expected.items() if n not in given and _identity(t) not in provided]
    surplus = [name for name in given if name not in expected]
    shapes = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if not (missing or surplus or shapes):
        return
    parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    parts += [f"{len(surplus)} that the model does not have ({_some(surplus)})"] if surplus else []
    parts += [f"{len(shapes)} of another shape ({_some(shapes)})"] if shapes else []
    advice = "make the factory build the model that this file was saved from"
    prefix = _common_prefix(missing, surplus)
    if prefix:
        advice = f"the names in the file begin with {prefix!r}: save them without it"
    elif len(missing) == 1 and (close := difflib.get_close_matches(missing[0], surplus, n=1)):
        advice = f"rename {close[0]} in the file to {missing[0]}"
    raise InputError(
        f"the checkpoint does not fit the model: {'; '.join(parts)}", where=f"--checkpoint {path}", what_to_do=advice
    )


def _identity(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]] | int:
    """Equal for tied tensors; each empty tensor is only itself."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else id(tensor)


def _common_prefix(missing: list[str], surplus: list[str]) -> str:
    """The prefix that turns every missing name into a surplus one, or ""."""
    if not missing or not surplus:
        return ""
    for candidate in surplus:
        prefix = candidate.removesuffix(missing[0])
        if prefix and prefix != candidate and all(prefix + name in surplus for name in missing):
            return prefix
    return ""


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:_MOST_NAMES])
    return listed if len(names) <= _MOST_NAMES else f"{listed}, ..."
