"""Every layer's map and its transpose, for one vector and many, against the layer itself and its autograd gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.geometry import Geometry, geometry
from layerhess.curvature.factors import layers, sensitivities
from layerhess.curvature.factors.layers import Entry

GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


A2, A3, IMAGE, LINE, CUBE = (
    numbers(5, 4),
    numbers(5, 3, 4),
    numbers(5, 4, 6, 7),
    numbers(5, 4, 9),
    numbers(2, 2, 4, 5, 3),
)
INDICES = torch.tensor([[0, 3, 1], [3, 3, 2], [1, 0, 0], [2, 2, 2], [4, 0, 3]])
GEOMETRIES = {
    "conv1d": (LINE, (6, 4, 3), Geometry((2,), (1,), (2,), 1)),
    "conv2d": (IMAGE, (6, 4, 3, 2), Geometry((2, 1), (1, 0), (1, 2), 1)),
    "conv3d": (CUBE, (3, 2, 2, 3, 1), Geometry((1, 2, 1), (0, 1, 0), (1, 1, 1), 1)),
    "grouped conv2d": (IMAGE, (6, 2, 3, 2), Geometry((1, 1), (1, 1), (1, 1), 2)),
    "depthwise conv1d": (LINE, (4, 1, 3), Geometry((1,), (0,), (1,), 4)),
}  # fmt: skip
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
Layer = tuple[Entry, tuple[int, ...], Callable[[Tensor], Tensor]]


def convolution(kind: str) -> Layer:
    a, shape, how = GEOMETRIES[kind]
    function = CONVOLUTIONS[a.ndim - 2]
    return (
        layers.convolution("w", a, torch.Size(shape), how), shape,
        lambda w: function(a, w, None, how.stride, how.padding, how.dilation, how.groups),
    )  # fmt: skip


def padded(table: Tensor) -> Tensor:
    return F.embedding(INDICES, table, padding_idx=3) * (INDICES != 3).unsqueeze(-1)  # a constant, and so not counted


LAYERS: dict[str, Callable[[], Layer]] = {
    "linear": lambda: (layers.linear("w", A2), (6, 4), lambda w: F.linear(A2, w)),
    "linear on sequences": lambda: (layers.linear("w", A3), (6, 4), lambda w: F.linear(A3, w)),
    "last bias": lambda: (layers.bias("b", A3.shape, -1), (4,), lambda b: b.expand(A3.shape)),
    "channel bias": lambda: (layers.bias("b", IMAGE.shape, 1), (4,), lambda b: b.view(1, 4, 1, 1).expand(IMAGE.shape)),
    "bias of vectors": lambda: (layers.bias("b", A2.shape, 1), (4,), lambda b: b.expand(A2.shape)),
    "scale": lambda: (layers.scale("w", A3, [2]), (4,), lambda w: A3 * w),
    "scale of several dimensions": lambda: (layers.scale("w", A3, [1, 2]), (3, 4), lambda w: A3 * w),
    "scale of channels": lambda: (layers.scale("w", IMAGE, [1]), (4,), lambda w: IMAGE * w.view(1, 4, 1, 1)),
    "shift": lambda: (layers.shift("b", A3.shape, [1, 2]), (3, 4), lambda b: b.expand(A3.shape)),
    "embedding": lambda: (layers.embedding("w", INDICES, 6, None), (6, 2), lambda w: F.embedding(INDICES, w)),
    "embedding with padding": lambda: (layers.embedding("w", INDICES, 6, 3), (6, 2), padded),
    **{kind: (lambda kind=kind: convolution(kind)) for kind in GEOMETRIES},  # type: ignore[misc]
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layers_map_and_its_transpose(kind: str) -> None:
    entry, shape, layer = LAYERS[kind]()
    w = numbers(*shape).requires_grad_()
    y = layer(w)
    d = numbers(*y.shape)
    torch.testing.assert_close(entry.push(w.detach()), y.detach())
    (pulled,) = torch.autograd.grad(y, w, d)
    torch.testing.assert_close(entry.pull(d), pulled)
    assert entry.pull(d).shape == shape and entry.name in "wb"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_many_vectors_at_once_are_each_of_them(kind: str, count: int) -> None:
    entry, shape, layer = LAYERS[kind]()
    rows = numbers(count, *shape)
    pushed = entry.pushed(rows)
    torch.testing.assert_close(pushed, torch.stack([layer(row) for row in rows], dim=1))
    back = numbers(*pushed.shape)
    torch.testing.assert_close(entry.pulled(back), torch.stack([entry.pull(back[:, i]) for i in range(count)]))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_pull_of_every_row_by_itself(kind: str) -> None:
    entry, shape, layer = LAYERS[kind]()
    d = numbers(*layer(numbers(*shape)).shape)
    alone = []
    for i in range(len(d)):
        one = torch.zeros_like(d)
        one[i] = d[i]
        alone.append(entry.pull(one))
    expected = torch.stack(alone)
    ways = [entry.each] + ([entry.laid_out()] if entry.laid_out is not None else [])
    assert (entry.each is None) is kind.startswith("embedding") and (len(ways) == 2) is (kind == "conv2d")
    for each in ways:
        if each is not None:
            torch.testing.assert_close(each(d).reshape(expected.shape), expected)


def test_what_an_entry_holds_on_to() -> None:
    assert layers.linear("w", A2).inputs[0] is A2 and layers.scale("w", A3, [2]).inputs[0] is A3
    assert layers.bias("b", A3.shape, -1).inputs == () and layers.embedding("w", INDICES, 6, 3).inputs[0] is INDICES
    assert convolution("conv2d")[0].inputs[0] is IMAGE


@pytest.mark.parametrize(
    ("n", "given", "expected"),
    [
        (2, (1, 0, 1, 1), Geometry((1, 1), (0, 0), (1, 1), 1)),
        (2, ((2, 3), [1], 1, 4), Geometry((2, 3), (1, 1), (1, 1), 4)),
        (1, (torch.tensor(2), 1, (3,), 1), Geometry((2,), (1,), (3,), 1)),
        (2, (1, "same", 1, 1), None),
        (2, ((1, 1, 1), 0, 1, 1), None),
        (2, (1, (0, 0, 0), 1, 1), None),
        (2, (1, 0, (1, 1, 1), 1), None),
    ],
)
def test_numbers_of_a_convolution_are_for_all_its_dimensions(n: int, given: tuple, expected: Geometry | None) -> None:
    assert geometry(n, *given) == expected


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_the_three_maps_of_a_geometry_are_torchs(kind: str) -> None:
    a, shape, how = GEOMETRIES[kind]
    x, w, offset = a.clone().requires_grad_(), numbers(*shape).requires_grad_(), numbers(shape[0])
    y = CONVOLUTIONS[a.ndim - 2](x, w, offset, how.stride, how.padding, how.dilation, how.groups)
    torch.testing.assert_close(how.output(x, w, offset), y)
    g = numbers(*y.shape)
    in_x, in_w = torch.autograd.grad(y, [x, w], g)
    torch.testing.assert_close(how.input_gradient(g, w, x.shape), in_x)
    torch.testing.assert_close(how.weight_gradient(g, x, w.shape), in_w)


# -- sensitivities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 24, 60, 1 << 22])
@pytest.mark.parametrize("seeds", [1, 5])
def test_sensitivities_are_gradients_whatever_goes_back_together(
    seeds: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivities, "TOGETHER", together)
    x = numbers(4, 3).requires_grad_()
    first = x.tanh() @ numbers(3, 3)
    second, unused = first.sin(), (2.0 * x).cos()
    output = second * first
    rows = numbers(seeds, 4, 3)
    edges = [torch.autograd.graph.get_gradient_edge(y) for y in (first, second, unused)]
    sizes = [12, 12, 12]
    found = sensitivities.sensitivities(output, edges, sizes, rows)
    assert found[2] is None and len(found) == 3
    for part, y in zip(found, (first, second), strict=False):
        alone = [torch.autograd.grad(output, y, row, retain_graph=True)[0] for row in rows]
        assert part is not None
        torch.testing.assert_close(part, torch.stack(alone))


class Refusing(torch.autograd.Function):
    """A backward that torch cannot batch."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return 3.0 * x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        float(g.sum())
        return 3.0 * g


class Full(Refusing):
    """Out of memory, and how often it was asked."""

    asked = 0

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        Full.asked += 1
        raise RuntimeError("CUDA out of memory")


def test_one_by_one_where_torch_cannot_batch_and_a_lack_of_memory_is_passed_on() -> None:
    x = numbers(4, 3).requires_grad_()
    first = x.tanh()
    edge = torch.autograd.graph.get_gradient_edge(first)
    rows = numbers(3, 4, 3)
    (found,) = sensitivities.sensitivities(Refusing.apply(first), [edge], [12], rows)
    assert found is not None
    torch.testing.assert_close(found, 3.0 * rows)
    with pytest.raises(RuntimeError, match="out of memory"):
        sensitivities.sensitivities(Full.apply(first), [edge], [12], rows)
    assert Full.asked == 1  # and not once more, one by one
