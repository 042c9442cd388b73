"""Draws that depend on seed, name and number alone, and flat vectors that keep a block's order."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from layerhess.errors import InputError
from layerhess.linalg.random_vectors import oriented, random_parts, random_signs, random_unit
from layerhess.objective.blocks import Block, check_flat, flatten, make_block

PARTS = {
    "a": torch.arange(6.0).view(2, 3),
    "scale": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
    "b": torch.tensor([8.0]),
}
BLOCK = make_block("both", PARTS)


def test_unit_vectors_are_numpys_normal_numbers_normalised() -> None:
    for seed, name, number in ((0, "fc", 0), (7, "fc", 3), (-1, "other", 0)):
        own = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(name.encode()), number]).standard_normal(40)
        found = random_unit(40, seed, name, number)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, own / np.linalg.norm(own), rtol=1e-14)
    assert random_unit(40, 0, "fc", 0, torch.device("cpu")).equal(random_unit(40, 0, "fc", 0))


def test_signs_are_plus_and_minus_one_as_often_and_have_nothing_to_do_with_unit_vectors() -> None:
    signs = random_signs(10_000, 0, "fc", 0)
    assert signs.dtype == torch.float64 and set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.04
    assert abs(float(signs @ random_unit(10_000, 0, "fc", 0))) < 4.0  # one standard deviation is 1
    assert abs(float(signs @ random_signs(10_000, 0, "fc", 1))) < 400 and signs.equal(random_signs(10_000, 0, "fc", 0))
    assert random_signs(5, 0, "fc", 0, torch.device("cpu")).device.type == "cpu"


def test_long_vectors_are_drawn_in_chunks_that_depend_on_nothing_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    short = random_unit(4, 3, "w", 2), random_signs(4, 3, "w", 2)
    monkeypatch.setattr("layerhess.linalg.random_vectors.CHUNK", 4)
    words = [3, zlib.crc32(b"w"), 2]
    numbers = [np.random.default_rng(own).standard_normal(4) for own in (words, [*words, 0, 1], [*words, 0, 2])]
    signs = [np.random.default_rng(own).integers(0, 2, 4, dtype=np.int8) for own in ([*words, 1], [*words, 1, 1])]
    drawn = np.concatenate(numbers)[:10]
    np.testing.assert_allclose(random_unit(10, 3, "w", 2).numpy(), drawn / np.linalg.norm(drawn), rtol=1e-15)
    assert np.array_equal(torch.cat(list(random_parts([3, 0, 6, 1], 3, "w", 2))).numpy(), drawn)
    assert np.array_equal(random_signs(7, 3, "w", 2).numpy(), 2.0 * np.concatenate(signs)[:7] - 1.0)
    assert torch.equal(random_unit(4, 3, "w", 2), short[0]) and torch.equal(random_signs(4, 3, "w", 2), short[1])


def test_flat_vectors_are_in_the_blocks_order_whatever_the_mappings() -> None:
    assert BLOCK.numel == 8
    flat = flatten(BLOCK, dict(reversed(PARTS.items())))
    assert flat.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 8.0]
    back = BLOCK.split(flat)
    assert list(back) == list(PARTS) and all(back[name].equal(part) for name, part in PARTS.items())
    rows = BLOCK.split(torch.stack([flat, 2.0 * flat, 3.0 * flat]))
    assert [tuple(part.shape) for part in rows.values()] == [(3, 2, 3), (3,), (3, 0, 4), (3, 1)]
    assert rows["a"][2].equal(3.0 * PARTS["a"]) and rows["scale"].tolist() == [7.0, 14.0, 21.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"c": torch.zeros(1)}, "names"), ({"b": None}, "names"), ({"a": torch.zeros(3, 2)}, r"\(3, 2\) for 'a'")],
)
def test_other_names_or_shapes_are_refused(changes: dict[str, torch.Tensor | None], words: str) -> None:
    parts = {name: part for name, part in {**PARTS, **changes}.items() if part is not None}
    with pytest.raises(InputError, match=words):
        flatten(BLOCK, parts)


def test_a_flat_vector_has_the_blocks_length() -> None:
    vector = torch.zeros(8)
    assert check_flat(BLOCK, vector) is vector
    for wrong in (torch.zeros(7), torch.zeros(1, 8), [0.0] * 8):
        with pytest.raises(InputError, match=r"flat tensor of shape \(8,\)"):
            check_flat(BLOCK, wrong)  # type: ignore[arg-type]


def test_the_largest_component_is_made_positive() -> None:
    assert oriented(torch.tensor([1.0, -3.0, 2.0])).tolist() == [-1.0, 3.0, -2.0]
    assert oriented(torch.tensor([-1.0, 3.0, 2.0])).tolist() == [-1.0, 3.0, 2.0]
    assert oriented(torch.tensor([0.0, 0.0])).tolist() == [0.0, 0.0]


def test_a_scalar_and_an_empty_tensor_are_counted() -> None:
    assert make_block("one", {"s": torch.tensor(1.0)}).numel == 1
    assert make_block("none", {"e": torch.zeros(0)}).numel == 0
    assert Block("x", ("s",), (torch.Size([]),), 1).split(torch.ones(1))["s"].shape == ()
