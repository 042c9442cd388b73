"""Which parameters form which block: schemes, globs and functions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from products_compared import distance, random_vector
from references import dense
from refusals import Table, X, Y, analysis, mlp
from zoo import BY_NAME

TABLE = Table()
case = TABLE.case

GLOBS = "model.named_parameters()"
case("pattern: matches nothing", "'foo*'", "no parameter", GLOBS)(analysis(blocks={"a": "foo*"}))
case("pattern: one of a list", "'zzz'", "no parameter")(analysis(blocks={"a": ["0.*", "zzz"]}))


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


case("pattern: frozen parameters only", "frozen parameters only", "0.weight", "requires_grad_(True)")(
    analysis(model=half_frozen, blocks={"a": "0.*"})
)
case("pattern: no text", "a pattern of block 'a' is 5")(analysis(blocks={"a": 5}))
case("pattern: no text in a list", "a pattern of block 'a' is 5")(analysis(blocks={"a": ["0.*", 5]}))
case("overlapping groups", "'0.weight'", "'a' and 'b'", "disjoint")(analysis(blocks={"a": "0.*", "b": "*.weight"}))
case("blocks: none at all", "no trainable parameter is in any block")(analysis(blocks={}))
case("blocks: a function that leaves all out", "no trainable parameter is in any block")(
    analysis(blocks=lambda name, parameter: None)
)
case("blocks: a function that returns no name", "returned 3")(analysis(blocks=lambda name, parameter: 3))
case("blocks: a name that is taken", "'(full)'")(analysis(blocks={"(full)": "0.*"}))
case("blocks: an empty name", "''")(analysis(blocks=lambda name, parameter: ""))
for _scheme in ("layers", "", "depth", "depth:0", "depth:x", "depth:-1"):
    case(f"unknown scheme: {_scheme!r}", f"{_scheme!r}", "'depth:K'")(analysis(blocks=_scheme))
case("unknown scheme: no text", "NoneType", "'depth:K'")(analysis(blocks=None))
case("a scheme that leaves no block", "'weight'", "blocks='parameter'")(
    analysis((X, Y), model=lambda: nn.Sequential(nn.BatchNorm1d(4)).eval(), blocks="weight")
)


@pytest.mark.parametrize("name", TABLE)
def test_bad_arguments_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


def test_tied_parameters_count_once_under_their_first_name() -> None:
    case = BY_NAME["tied-used-twice"]
    built = case.build(torch.float64, 0)
    hessian = lh.Hessian(built.objective(), "parameter")
    names = [name for name, _ in built.model.named_parameters()]
    assert "second.weight" not in names
    everything = {name: torch.ones(p.numel(), dtype=torch.float64) for name, p in built.model.named_parameters()}
    assert list(hessian.block_matvec(everything)) == names
    by_alias = lh.Hessian(built.objective(), {"second": "second.*", "rest": ["first.bias", "head.*"]})
    expected = dense.of_case(case.name).block(["first.weight", "second.bias"])
    assert distance(torch.as_tensor(by_alias.block("second").to_dense()), expected) <= 1e-10 * np.linalg.norm(expected)


def test_globs_cross_the_dots_of_parameter_names() -> None:
    case = BY_NAME["transformer-tied-ignore"]
    built = case.build(torch.float64, 0)
    blocks = {"attention": "attention*", "norms": ["norm_?.weight", "norm_?.bias"], "mlp": "mlp.*.weight"}
    hessian = lh.Hessian(built.objective(), blocks)
    reference = dense.of_case(case.name)
    for name, members in dense.groups_of(built.model, blocks).items():
        vector = random_vector(len(reference.index(members)), seed=6)
        expected = reference.block(members) @ vector.numpy()
        found = torch.as_tensor(hessian.block(name).matvec(vector))
        assert distance(found, expected) <= 1e-10 * np.linalg.norm(expected), name


def test_a_function_may_gather_parameters_that_are_not_neighbours() -> None:
    """The block's vector follows the order of the model, whatever lies between its parameters."""
    case = BY_NAME["mlp-tanh-mse"]
    built = case.build(torch.float64, 0)
    chosen = ("4.weight", "0.bias")
    hessian = lh.Hessian(built.objective(), lambda name, parameter: "picked" if name in chosen else None)
    expected = dense.of_case(case.name).block(chosen)
    assert distance(torch.as_tensor(hessian.block("picked").to_dense()), expected) <= 1e-10 * np.linalg.norm(expected)
