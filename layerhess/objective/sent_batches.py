"""Batches, and parts of them, that the ranks of a group show each other."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from layerhess.errors import InputError
from layerhess.objective.batches import prepare
from layerhess.objective.group import Group

About = TypeVar("About")


def of_all_ranks(own: Sequence[tuple[About, Any]], group: Group, device: torch.device) -> list[list[tuple[About, Any]]]:
    """(what is known of it, batch) of every rank, in the ranks' order, on ``device``.

    Raises:
        InputError: a batch cannot be sent.
    """
    if group.size == 1:
        return [list(own)]
    packed = group.tried(lambda: _packed(own))
    return [
        [(about, prepare(batch, device)) for about, batch in pickle.loads(others)] for others in group.gathered(packed)
    ]


def _packed(own: Sequence[tuple[Any, Any]]) -> bytes:
    memory = torch.device("cpu")
    try:  # clones: a view would be sent with all that it is a part of
        return pickle.dumps([(about, prepare(batch, memory, refilled=True)) for about, batch in own])
    except Exception as error:  # pickle's, or of the user's classes
        raise InputError(
            f"a batch cannot be sent to the other processes ({type(error).__name__}: {str(error)[:100]})",
            where="data",
            what_to_do="let batches consist of tensors, numbers, and objects that pickle",
        ) from error
