"""The one loop that adds up over batches: sums, lists and rows, and what a batch could not serve."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.curvature.totals import Listing, Totals, add_up
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit

PARTS = [np.random.default_rng(i).standard_normal((i + 2, 3)) for i in range(4)]


def test_numbers_and_tensors_are_added_and_lists_keep_the_order_of_the_data() -> None:
    def share(part: np.ndarray, totals: Totals) -> None:
        totals.add("count", len(part))
        totals.add(("column", "first"), torch.from_numpy(part[0]))
        totals.append("lengths", len(part))

    totals = add_up(PARTS, share)
    assert totals.total("count") == sum(map(len, PARTS)) and totals.listed("lengths") == [2, 3, 4, 5]
    np.testing.assert_allclose(totals.totals("column")["first"], sum(part[0] for part in PARTS), rtol=1e-15)
    assert totals.total("nothing") == 0.0 and totals.listed("nothing") == []


def test_a_first_addend_is_not_changed_by_what_is_added_to_it() -> None:
    totals, first = Totals(), torch.ones(3, dtype=torch.float64)
    totals.add("sum", first)
    totals.add("sum", torch.full((3,), 2.0, dtype=torch.float64))
    assert totals.total("sum").tolist() == [3.0] * 3 and first.tolist() == [1.0] * 3


def test_parts_of_a_sum_are_added_in_float64_where_they_belong() -> None:
    totals = Totals()
    for value in (1.0, 2.0):
        totals.open("products", 2, 5)  # the second time nothing is lost
        totals.add("products", torch.full((1, 2), value), slice(1, 2), slice(3, 5))
    expected = np.zeros((2, 5))
    expected[1, 3:] = 3.0
    assert totals.total("products").dtype == torch.float64
    np.testing.assert_array_equal(totals.total("products"), expected)


def test_rows_add_up_to_their_matrix_until_the_room_is_full() -> None:
    totals = Totals()
    for part in PARTS:
        rows = torch.from_numpy(part)
        assert totals.add_rows("block", 3, [(rows, torch.ones(len(rows)))], room=10**6)
    found = totals.rows()["block"].decompose(Wanted(top=3), 2.0, lambda i: random_unit(3, 0, "x", i))
    assert found is not None
    truth = np.linalg.eigvalsh(sum(part.T @ part for part in PARTS) / 2.0)
    np.testing.assert_allclose(found.values, truth, rtol=1e-12)
    full = Totals()
    rows = torch.from_numpy(PARTS[0])
    assert not full.add_rows("block", 30, [(torch.zeros(2, 30, dtype=torch.float64), torch.ones(2))], room=100)
    assert full.row_bytes == 2 * 30 * 8
    assert Totals().add_rows("block", 3, [(rows, torch.ones(2))], room=2 * 3 * 8), "exactly full is not too much"


def test_what_one_batch_cannot_serve_has_no_sum_whatever_the_others_add() -> None:
    def share(number: int, totals: Totals) -> None:
        if number == 1:
            totals.drop("a", "the second batch has none")
        totals.add("a", 1.0)
        totals.append("a", number)
        totals.add("b", 1.0)

    totals = add_up(range(3), share)
    assert totals.dropped == {"a": "the second batch has none"}
    assert totals.total("a") == 0.0 and totals.listed("a") == [] and totals.total("b") == 3.0


def test_an_interrupt_is_looked_for_before_every_part() -> None:
    seen: list[int] = []

    def checkpoint() -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_up(range(5), lambda part, totals: seen.append(part), checkpoint=checkpoint)
    assert seen == [0, 1]


def test_entries_of_lists_are_joined() -> None:
    """Five batches, two of which make an entry; what is listed for each key is joined alike."""

    def share(number: int, totals: Totals) -> None:
        totals.append("count", float(number))
        totals.append("form", torch.tensor([1.0, number]))

    totals = add_up(range(5), share, listing=Listing(joined=2))
    assert totals.listed("count") == [1.0, 5.0, 4.0]
    assert torch.equal(torch.stack(totals.listed("form")), torch.tensor([[2.0, 1.0], [2.0, 5.0], [1.0, 4.0]]))


def test_entries_whose_places_are_known_are_added_up_there() -> None:
    listing = Listing(number=3)

    def share(number: int, totals: Totals) -> None:
        listing.place = 2 * (number % 2)
        totals.append("count", float(number))
        totals.append("form", torch.tensor([1.0, number]), torch.tensor([0.0, 1.0]))
        totals.append("gone", 1.0)
        if number == 3:
            totals.drop("gone", "no such")

    totals = add_up(range(5), share, listing=listing)
    kept, tensors = totals.content()
    for own in (totals, Totals.of(kept, tensors)):
        assert own.listed("count") == [6.0, 0.0, 4.0] and own.listed("gone") == []
        assert torch.equal(torch.stack(own.listed("form")).float(), torch.tensor([[3.0, 9], [0, 0], [2, 6]]))
