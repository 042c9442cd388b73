"""The empirical Fisher against gradients of single items, one backward pass each; and where it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
import zoo_losses
from commands import working_in
from layerhess.cli import main
from products_compared import FLOOR, distance, random_vector
from references import curvature, dense
from two_batches import batches, net
from witness import refused
from zoo import BY_NAME, CASES, Case, dtypes_in_turn, twins
from zoo_blocks import TIED

USABLE = [case for case in CASES if case.name not in TIED]
SMALL = [case for case in USABLE if "large" not in case.tags]
# Class targets that can be ignored one by one, under a criterion.
BY_TERM = [
    case
    for case in SMALL
    if case.totals in (zoo_losses.cross_entropy_totals, zoo_losses.weighted_smoothed_totals, zoo_losses.sentence_totals)
]

every_case = pytest.mark.parametrize("case", USABLE, ids=str)


# -- products ----------------------------------------------------------------------------------------------------------


@every_case
def test_products_are_those_of_the_sum_of_outer_products(case: Case) -> None:
    reference = curvature.of_case(case.name, "empirical_fisher")
    operator = lh.EmpiricalFisher(
        case.build(torch.float64, 0).objective(), check=False
    )  # analyses below have the checks
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    assert distance(operator.matvec(vector), expected) <= case.tolerance * np.linalg.norm(expected)
    if len(reference.matrix) <= 50:
        assert distance(operator.to_dense(), reference.matrix) <= case.tolerance * np.linalg.norm(reference.matrix)


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        pytest.param(case, scheme, id=f"{case}-{scheme}", marks=() if number % 2 == place else pytest.mark.slow)
        for number, case in enumerate(USABLE)
        for place, scheme in enumerate(("parameter", "module"))
    ],
)
def test_one_call_gives_every_diagonal_block(case: Case, scheme: str) -> None:
    reference = curvature.of_case(case.name, "empirical_fisher")
    objective = case.build(torch.float64, 0).objective()
    groups = dense.groups_of(objective.model, scheme)
    vectors = {
        name: random_vector(len(reference.index(members)), seed) for seed, (name, members) in enumerate(groups.items())
    }
    products = lh.EmpiricalFisher(objective, scheme, check=False).block_matvec(vectors)
    floor = FLOOR * np.linalg.norm(reference.matrix)
    for name, members in groups.items():
        expected = reference.block(members) @ vectors[name].numpy()
        allowed = case.tolerance * np.linalg.norm(expected) + floor * np.linalg.norm(vectors[name])
        assert distance(products[name], expected) <= allowed, name


@pytest.mark.parametrize("name", ["mlp-tanh-mse", "weighted-examples", "lstm"])
def test_a_loss_of_ones_own_gives_the_same_with_and_without_an_output(name: str) -> None:
    case = BY_NAME[name]
    reference = curvature.of_case(name, "empirical_fisher")
    built = case.build(torch.float64, 0)
    plain = built._replace(loss=lh.batch_loss(lambda model, batch: case.totals(model, batch)))
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    for variant in (plain, curvature.with_output(case, plain)):
        found = lh.EmpiricalFisher(variant.objective()).matvec(vector)
        assert distance(found, expected) <= case.tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("case", BY_TERM, ids=str)
def test_at_token_level_every_counted_term_has_a_gradient_of_its_own(case: Case) -> None:
    reference = curvature.of_case(case.name, "empirical_fisher:token")
    if case.name in TIED:
        return
    operator = lh.EmpiricalFisher(case.build(torch.float64, 0).objective(), level="token", check=False)
    assert operator.operator == "empirical_fisher:token"
    vector = random_vector(len(reference.matrix), seed=1)
    expected = reference.matrix @ vector.numpy()
    assert distance(operator.matvec(vector), expected) <= case.tolerance * np.linalg.norm(expected)


def test_the_two_levels_differ_where_an_item_has_several_terms_and_only_there() -> None:
    for name, same in (("transformer-tied-ignore", False), ("mlp-relu-ce", True)):
        item, token = (curvature.of_case(name, f"empirical_fisher{level}").matrix for level in ("", ":token"))
        assert bool(np.linalg.norm(item - token) <= 1e-12 * np.linalg.norm(item)) is same


@pytest.mark.parametrize("level", ["item", "token"])
def test_a_language_model_under_a_criterion_is_grouped_by_sequence_or_by_token(level: str) -> None:
    """Its logits (N, T, C) are flattened for the criterion; an item is a sequence all the same."""
    case = BY_NAME["bert-words-logits"]
    built = case.build(torch.float64, 0)
    items = curvature.terms_alone if level == "token" else curvature.split
    expected = curvature.empirical_fisher(built.model, built.data, case.totals, items)
    found = lh.EmpiricalFisher(lh.Objective(built.model, built.data, nn.CrossEntropyLoss()), level=level)
    vector = random_vector(len(expected.matrix), seed=2)
    product = expected.matrix @ vector.numpy()
    assert distance(found.matvec(vector), product) <= 1e-10 * np.linalg.norm(product)


def test_another_callable_is_called_once_an_item() -> None:
    """A mean over the first dimension that no criterion of torch stands for."""
    case = BY_NAME["mlp-tanh-mse"]
    built = case.build(torch.float64, 0)

    def mean(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(1).mean()

    found = lh.EmpiricalFisher(lh.Objective(built.model, built.data, mean)).to_dense()
    # Its count is examples, that of MSELoss entries (two per example): g is half as large, the count too.
    expected = curvature.of_case(case.name, "empirical_fisher").matrix / 2
    assert distance(found, expected) <= 1e-12 * np.linalg.norm(expected)


def test_a_summed_loss_has_the_denominator_one() -> None:
    built = BY_NAME["mlp-relu-ce"].build(torch.float64, 0)
    found = lh.EmpiricalFisher(lh.Objective(built.model, built.data, nn.CrossEntropyLoss(reduction="sum"))).to_dense()
    expected = curvature.of_case("mlp-relu-ce", "empirical_fisher").matrix * 16
    assert distance(found, expected) <= 1e-12 * np.linalg.norm(expected)


# -- eigenvalues -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "dtype"), dtypes_in_turn(SMALL, leave=twins(2)))
def test_the_bounds_of_an_analysis_hold_the_dense_eigenvalues(case: Case, dtype: torch.dtype) -> None:
    reference = curvature.of_case(case.name, "empirical_fisher")
    objective = case.build(dtype, 0).objective()
    result = lh.analyze(objective, blocks="module", operator="empirical_fisher")
    groups = dense.groups_of(objective.model, "module")
    # A float32 model is not the float64 model: its weights are rounded, which moves eigenvalues by about that much.
    slack = (case.inherent + 1e-14 + (1e-6 if dtype == torch.float32 else 0.0)) * reference.norm
    for spectrum in result.spectra():
        members = list(reference.places) if spectrum is result.full else groups[spectrum.name]
        top = np.linalg.eigvalsh(reference.block(members))[-1]
        assert spectrum.ok, (spectrum.name, spectrum.status)
        assert abs(spectrum.eigenvalues[0] - top) <= spectrum.error_bounds[0] + slack, spectrum.name


def test_the_trace_is_the_mean_squared_gradient_and_the_rank_the_number_of_items() -> None:
    """Both hold of any sum of outer products: a whole spectrum through the library."""
    case = BY_NAME["mlp-tanh-mse"]
    built = case.build(torch.float64, 0)
    result = lh.analyze(built.objective(), operator="empirical_fisher", top=built.objective().numel).full
    assert result is not None and result.complete
    squares = 0.0
    for batch in built.data:
        for item in curvature.split(batch):
            loss, _ = case.totals(built.model, item)
            squares += sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(built.model.parameters())))
    assert abs(result.eigenvalues.sum() / (squares / 22) - 1) <= 1e-12
    assert (result.eigenvalues > 1e-10 * result.eigenvalues[0]).sum() == 11


def test_eigsh_takes_it() -> None:
    case = BY_NAME["mlp-tanh-wide"]
    truth = np.linalg.eigvalsh(curvature.of_case(case.name, "empirical_fisher").matrix)[::-1][:2]
    pairs = lh.eigsh(lh.EmpiricalFisher(case.build(torch.float64, 0).objective()), k=2, tol=1e-6)
    assert pairs.converged.all() and (np.abs(pairs.values - truth) <= pairs.error_bounds + 1e-14).all()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["empirical_fisher", "empirical_fisher:token"])
@pytest.mark.parametrize("name", TIED)
def test_batch_norm_in_train_mode_is_refused_with_its_name(name: str, operator: str) -> None:
    built = BY_NAME[name].build(torch.float64, 0)
    norms = [n for n, m in built.model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    with refused(built.model, "BatchNorm runs in train mode", norms[0], "mode='eval'"):
        lh.analyze(built.objective(), operator=operator)


def test_an_unknown_level_is_refused() -> None:
    with refused(None, "unknown level 'word'", "'token'"):
        lh.EmpiricalFisher(lh.Objective(net(), batches()[0], nn.CrossEntropyLoss()), level="word")


FACTORY = """
import torch, layerhess as lh
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
x, y = torch.randn(9, 3), torch.arange(9) % 2
def classes(): return lh.Objective(model, (x, y), nn.CrossEntropyLoss(), mode="eval")
def numbers(): return lh.Objective(model, (x, torch.randn(9, 2)), nn.MSELoss(), mode="eval")
def train(): return lh.Objective(model, (x, y), nn.CrossEntropyLoss())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "factory.py").write_text(FACTORY)
    with working_in(tmp_path, monkeypatch):
        yield tmp_path


@pytest.mark.parametrize("operator", ["empirical_fisher", "empirical_fisher:token"])
def test_the_command_line_takes_it_and_names_it_everywhere(folder: Path, operator: str) -> None:
    assert main(["analyze", "factory.py:classes", "--operator", operator, "--bottom", "1", "--out", "run", "-q"]) == 0
    saved = lh.load("run")
    assert {s.operator for s in saved.spectra()} == {operator} == {saved.settings["operator"]}
    for text in (str(saved), saved._repr_html_(), (folder / "run" / "report.html").read_text()):
        assert "F_bb" in text or "F<sub>bb</sub>" in text
        words = " ".join(text.split())
        assert not any(wrong in words for wrong in ("Hessian", "stable step", "2/λ", "2/lambda", "negative", "curves"))


@pytest.mark.parametrize(
    ("target", "operator", "words"),
    [
        ("train", "empirical_fisher", ("BatchNorm runs in train mode", "mode='eval'")),
        ("numbers", "empirical_fisher:token", ("each counted term", "MSELoss")),
        ("classes", "fisher", ("unknown operator 'fisher'", "'empirical_fisher:token'")),
    ],
)
def test_the_command_line_refuses_what_python_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str, operator: str, words: tuple[str, ...]
) -> None:
    assert main(["analyze", f"factory.py:{target}", "--operator", operator, "--out", "run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(word in said for word in words) and "Traceback" not in said
    assert not (folder / "run").exists()
