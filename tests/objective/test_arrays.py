"""NumPy arrays are tensors of the same dtype; frames and lists of numbers are refused with the spelling to use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import layerhess as lh
from layerhess.objective.arrays import as_tensors
from refusals import PAIRS, Table, X, Y, analysis, mlp

TABLE = Table()
case = TABLE.case
FRAME = pd.DataFrame(X.numpy(), columns=list("abcd"))
FRAME["y"] = Y.numpy()

case("a frame", "pandas DataFrame", "to_numpy(dtype='float32')")(analysis(lambda: FRAME))
case("a frame as inputs", "pandas DataFrame", "to_numpy")(analysis(lambda: (FRAME[list("abcd")], Y)))
case("a column as targets", "pandas Series", "to_numpy")(analysis(lambda: [(X, FRAME["y"])]))
case("a bare array", "bare array, without targets", "(x, y)")(analysis(lambda: X.numpy()))
case("a list of arrays", "2 bare arrays is ambiguous", "(x, y)")(analysis(lambda: [X.numpy(), Y.numpy()]))
case("arrays of another precision", "float64 tensors", "weights are float32", "x.to(torch.float32)")(
    analysis(lambda: (X.double().numpy(), Y.numpy()))
)
case("a list of numbers as inputs", "list(list", "torch.tensor(...)")(analysis(lambda: (X.tolist(), Y)))
case("a list of floats as inputs", "list(float", "torch.tensor(...)")(analysis(lambda: (X[:, 0].tolist(), Y)))
case("texts as inputs", "of object", "torch.tensor(...)")(analysis(lambda: (np.array(["a"] * 12, dtype=object), Y)))
case("a list of numbers as targets", "target is list", "CrossEntropyLoss needs a tensor")(
    analysis(lambda: (X, Y.tolist()))
)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_no_tensor_is_refused_with_the_spelling(name: str) -> None:
    TABLE.check(name)


def numpy_of(batch: Any) -> Any:
    return tuple(part.numpy() for part in batch)


@pytest.mark.parametrize("target", [np.int64, np.int32, np.uint8])
def test_arrays_give_the_number_of_tensors(target: Any) -> None:
    expected = lh.Hessian(lh.Objective(mlp(), PAIRS, nn.CrossEntropyLoss())).to_dense()
    arrays = [(x.numpy(), y.numpy().astype(target)) for x, y in PAIRS]
    both = (X.numpy(), Y.numpy().astype(target))
    for data in (arrays, both, [{"input": x, "labels": y} for x, y in arrays], DataLoader(arrays, batch_size=None)):
        found = lh.Hessian(lh.Objective(mlp(), data, nn.CrossEntropyLoss())).to_dense()
        torch.testing.assert_close(found, expected)
    assert lh.Objective(mlp(), arrays, nn.CrossEntropyLoss()).subset(4).subset(3)
    cut = lh.Hessian(lh.Objective(mlp(), both, lambda o, t: F.cross_entropy(o, t.long()), batch_size=5)).to_dense()
    torch.testing.assert_close(cut, expected)


def test_a_batch_loss_gets_its_arrays_as_they_are() -> None:
    def loss(model: Any, batch: Any) -> Any:
        x, y = (torch.from_numpy(part) for part in batch)
        return F.cross_entropy(model(x), y, reduction="sum"), len(y)

    expected = lh.Hessian(lh.Objective(mlp(), PAIRS, nn.CrossEntropyLoss())).to_dense()
    found = lh.Hessian(lh.Objective(mlp(), [numpy_of(pair) for pair in PAIRS], lh.batch_loss(loss))).to_dense()
    torch.testing.assert_close(found, expected)


def test_arrays_that_torch_cannot_share_are_copied() -> None:
    array = np.arange(6.0).reshape(2, 3)
    fixed = array.copy()
    fixed.flags.writeable = False
    for given in (array[::-1, ::-1], array.astype(">f8"), fixed, array.T, array[:, :0]):
        made = as_tensors(given)
        assert isinstance(made, torch.Tensor) and made.dtype == torch.float64
        assert np.array_equal(made.numpy(), given)
    assert as_tensors({"a": (array, "text", None, np.float64(2.0))})["a"][1:] == ("text", None, 2.0)
    assert as_tensors(array).data_ptr() == torch.from_numpy(array).data_ptr()
    names = np.array(["a", "b"])
    assert as_tensors(names) is names
