"""The accuracy: right answers counted by hand, for every form of output that has one."""

from __future__ import annotations

import pytest
import torch

from layerhess.cli.accuracy import accuracy
from layerhess.errors import InputError


def test_of_pixels_and_tokens_each_counts_and_ignored_ones_do_not() -> None:
    output = torch.tensor([[[0.1, 0.9, 0.3], [0.8, 0.2, 0.4]]])  # (1, 2 classes, 3 places): 1, 0, 1
    assert accuracy(output, torch.tensor([[1, 1, -100]])).tolist() == [1.0, 0.0]


def test_targets_may_be_probabilities() -> None:
    output = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert accuracy(output, torch.tensor([[0.2, 0.8], [0.4, 0.6]])).tolist() == [1.0, 0.0]


def test_two_classes_may_be_one_logit() -> None:
    assert accuracy(torch.tensor([[-0.1], [0.2]]), torch.tensor([[0.0], [0.0]])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(3), torch.zeros(2)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long)),
        (torch.zeros(3, 5, 4), torch.zeros(3, 5, dtype=torch.long)),
        ("text", torch.zeros(2)),
    ],
)
def test_what_has_no_accuracy_is_refused(output: object, target: torch.Tensor) -> None:
    with pytest.raises(InputError, match="is not known"):
        accuracy(output, target)  # type: ignore[arg-type]
