"""Batches of equal shapes, several at a time: what is joined, in which order, and what never is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layerhess.objective import batches


def numbered(*sizes: int, width: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of so many examples, which hold 0, 1, 2, ... one after the other."""
    every = torch.arange(float(sum(sizes))).split(list(sizes))
    return [(own[:, None].expand(-1, width) + torch.arange(width), own.long()) for own in every]


def firsts(made: list[Any]) -> list[list[int]]:
    return [batch[1].tolist() for batch in made]


def gathered(given: list[Any], size: int) -> list[Any]:
    """Joined are those that are like the first one that has rows."""
    alike = next((batches.kind(batch) for batch in given if batches.leading_size(batch)), ("", ""))
    return list(batches.gathered(given, batches.Together(size, alike)))


def test_they_come_in_order_up_to_the_size() -> None:
    made = gathered(numbered(3, 3, 3, 3, 2), 7)
    assert firsts(made) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13]]
    assert all(torch.equal(x, y[:, None] + torch.arange(3.0)) for x, y in made)


def test_what_is_as_large_as_the_size_comes_as_it_is() -> None:
    given = numbered(2, 7, 9, 2)
    made = gathered(given, 7)
    assert made[0] is given[1] and made[1] is given[2] and firsts(made)[2] == [0, 1, 18, 19]


def test_of_two_kinds_one_is_joined() -> None:
    short, long = numbered(2, 2), numbered(3, 3, width=5)
    made = gathered([short[0], long[0], short[1], long[1]], 100)
    assert [(len(x), x.shape[1]) for x, _ in made] == [(3, 5), (3, 5), (4, 3)]


@pytest.mark.parametrize("key", ["labels", "target"])
def test_mappings_with_other_content_stay_apart(key: str) -> None:
    one, other = ({"x": x, key: y, "scale": scale} for (x, y), scale in zip(numbered(2, 2), (1.5, 2.5), strict=True))
    assert gathered([one, other], 100) == [other, one]
    alike = gathered([one, {**other, "scale": 1.5}], 100)
    assert len(alike) == 1 and alike[0]["scale"] == 1.5 and alike[0][key].tolist() == [0, 1, 2, 3]


def test_batches_that_an_input_tells_apart_are_not_joined() -> None:
    flags = [0.0, 1.0, 0.0]
    given = [((x, torch.full((2,), flag)), y) for (x, y), flag in zip(numbered(2, 2, 2), flags, strict=True)]
    made = gathered(given, 100)
    assert sorted(len(y) for _, y in made) == [2, 4]
    assert all((flag == flag[0]).all() for (_, flag), _ in made)


def test_of_single_examples_one_number_may_be_a_flag() -> None:
    given = [((x, torch.tensor([flag])), y) for (x, y), flag in zip(numbered(1, 1, 1), [0.0, 1.0, 0.0], strict=True)]
    assert firsts(gathered(given, 100)) == [[1], [0, 2]]


def test_labels_that_all_examples_share_tell_nothing_apart() -> None:
    given = [(x, torch.full((2,), number)) for number, (x, _) in enumerate(numbered(2, 2))]
    assert firsts(gathered(given, 100)) == [[0, 0, 1, 1]]
    of_a_model = [{"x": x, "labels": y} for x, y in given]
    assert len(gathered(of_a_model, 100)) == 1


def test_what_has_no_rows_comes_as_it_is() -> None:
    sparse = torch.eye(2).to_sparse()
    given: list[Any] = [(sparse, torch.zeros(2)), (torch.zeros(3, 2), torch.zeros(4)), (torch.tensor(1.0),)]
    assert all(a is b for a, b in zip(gathered(given + given, 100), given + given, strict=True))


def test_no_more_bytes_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "HELD", 3 * batches.nbytes(numbered(2)[0]))
    made = gathered(numbered(*[2] * 8), 1000)
    assert [len(y) for _, y in made] == [6, 6, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool])
def test_rows_of_every_dtype_tell_apart(dtype: torch.dtype) -> None:
    given = [(torch.full((2, 2), value).to(dtype), torch.zeros(2)) for value in (0, 1)]
    assert len(gathered(given, 100)) == 2


def test_a_flag_is_not_taken_for_the_lack_of_one() -> None:
    flag = torch.full((2, 1), ord("|"), dtype=torch.uint8)
    same, apart = ((flag, torch.zeros(2)), (torch.tensor([[1], [2]], dtype=torch.uint8), torch.zeros(2)))
    assert batches.kind(same) != batches.kind(apart)


def test_flags_beside_the_target_tell_batches_apart() -> None:
    tasks = [(x, (y, torch.full((2,), task))) for task, (x, y) in enumerate(numbered(2, 2))]
    assert batches.kind(tasks[0]) != batches.kind(tasks[1])
