"""Plans from end to end: within the budget, never worse than the simple ones, near the best of all, the same again."""

from __future__ import annotations

import copy
import itertools
import math
import types
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerhess as lh
import planned
from ctrl_c import press_ctrl_c
from layerhess.results import plan_file
from layerhess.results.options import Prune, Quantize
from layerhess.results.plan import COUPLINGS, CRITERIA
from witness import refused, untouched

MLP = ["0.weight", "2.weight", "4.weight"]
QUICK: dict[str, Any] = {"curvature": False, "verify": False}


def loss_with(objective: lh.Objective, plan: lh.Plan | None) -> float:
    """The mean loss of all examples in float64, of a copy to which the plan was applied."""
    model = copy.deepcopy(objective.model)
    if plan is not None:
        lh.apply_plan(model, plan)
    with torch.no_grad():
        sums = [F.cross_entropy(model(x).double(), y, reduction="sum") for x, y in objective.data]
    return float(sum(sums)) / sum(y.numel() for _, y in objective.data)


def increase(objective: lh.Objective, plan: lh.Plan) -> float:
    return loss_with(objective, plan) - loss_with(objective, None)


@pytest.mark.parametrize("kind", planned.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_plan_is_what_it_says_and_never_worse_than_simple_ones(kind: str, seed: int) -> None:
    objective = planned.objective(kind, seed)
    with untouched(objective.model):
        plan = lh.plan(objective, budget="4bit", seed=seed)
    assert plan.measured == pytest.approx(increase(objective, plan), rel=1e-4, abs=1e-7)
    assert plan.loss == pytest.approx(loss_with(objective, None), rel=1e-5)
    sizes = {weight.name: weight.numel for weight in plan.weights}
    bits = sum(plan.choice[name].bits * size for name, size in sizes.items()) / sum(sizes.values())  # type: ignore[union-attr]
    assert plan.mean_bits == pytest.approx(bits) and bits <= 4.0
    for name in ("uniform w4", "uniform w3", "uniform w2", "hawq_v2", "measured"):
        other = plan.baselines[name]
        assert other.fits and plan.measured <= other.measured, name
        assert other.measured == pytest.approx(
            increase(objective, replace(plan, choice=other.choice)), rel=1e-4, abs=1e-7
        )
    assert not plan.baselines["uniform w8"].fits
    assert all(plan.measured <= one.measured for one in plan.candidates.values() if one.fits)
    assert plan.counts.measuring + plan.counts.portfolio <= 3.0 * len(plan.rows)
    assert plan.counts.curvature > 0.0 and len(plan.random) == 20 and plan.verdict
    np.testing.assert_array_equal(plan.interactions, plan.interactions.T)
    sized = [(one.size_bytes, one.measured) for one in plan.frontier]
    assert sized == sorted(sized) and [m for _, m in sized] == sorted((m for _, m in sized), reverse=True)


def of_plans(
    objective: lh.Objective, names: list[str], plans: Iterable[tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    """The increase of the loss by each plan, from one forward pass with weights rounded here."""
    weights = {n: p.detach() for n, p in objective.model.named_parameters()}
    rounded = {(n, k): lh_changed(k, weights[n]) for n in names for k in (2, 3, 4, 8)}
    x, y = (torch.cat([batch[i] for batch in objective.data]) for i in (0, 1))

    def loss(plan: tuple[int, ...]) -> float:
        own = {**weights, **{n: rounded[n, k] for n, k in zip(names, plan, strict=True)}} if plan else weights
        with torch.no_grad():
            return float(F.cross_entropy(torch.func.functional_call(objective.model, own, (x,)).double(), y))

    start = loss(())
    return {plan: loss(plan) - start for plan in plans}


def lh_changed(bits: int, weight: Tensor) -> Tensor:
    """As the contract has it: s = max|w| / ((qmax - qmin) / 2) by row, q = clamp(round(w / s)), w = q s."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / ((high - low) / 2)
    return (weight * (1.0 / scale)).round().clamp(low, high) * scale


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [3, 4])
def test_of_three_layers_the_plan_is_the_best_of_all_or_close(seed: int, bits: int) -> None:
    objective = planned.objective("mlp", seed)
    options = (2, 3, 4, 8)
    plan = lh.plan(objective, options, f"{bits}bit", **QUICK)
    every = of_plans(objective, MLP, itertools.product(options, repeat=3))
    sizes = [weight.numel for weight in plan.weights]
    fitting = {
        own: value
        for own, value in every.items()
        if sum(k * n for k, n in zip(own, sizes, strict=True)) <= bits * sum(sizes)
    }
    own = tuple(plan.choice[name].bits for name in MLP)  # type: ignore[union-attr]
    assert plan.measured == pytest.approx(fitting[own], rel=1e-4, abs=1e-7)
    rank = sorted(fitting.values()).index(fitting[own])
    assert rank <= 1, f"{rank} of {len(fitting)} plans are better"


BUDGETS: dict[str, Any] = {
    "bits": "3bit",
    "bytes": {"bytes": 200},
    "latency": {"latency": ({name: [1.0, 1.5, 2.0, 4.0] for name in MLP}, 5.0)},
    "bops": {"bops": ({"0.weight": 72, "2.weight": 144, "4.weight": 36}, 252 * 3.5)},
    "two": {"bits": 4, "latency": ({name: {2: 3.0, 3: 2.0, 4: 2.5, 8: 1.0} for name in MLP}, 6.5)},
}


@pytest.mark.parametrize("kind", BUDGETS)
def test_every_budget_is_met(kind: str) -> None:
    plan = lh.plan(planned.objective(), budget=BUDGETS[kind], **QUICK)
    places = [(2, 3, 4, 8).index(plan.choice[name].bits) for name in MLP]  # type: ignore[union-attr]
    sizes = [weight.numel for weight in plan.weights]
    bits = sum(plan.choice[n].bits * size for n, size in zip(MLP, sizes, strict=True))  # type: ignore[union-attr]
    rows = [12, 12, 3]  # scales of 16 bits
    used = {
        "bits": bits / sum(sizes) <= 3.0,
        "bytes": (bits + 16 * sum(rows)) / 8 <= 200 and plan.size_bytes == (bits + 16 * sum(rows)) / 8,
        "latency": sum([1.0, 1.5, 2.0, 4.0][k] for k in places) <= 5.0,
        "bops": sum(m * plan.choice[n].bits for m, n in zip((72, 144, 36), MLP, strict=True)) <= 252 * 3.5,  # type: ignore[union-attr]
        "two": bits / sum(sizes) <= 4.0 and sum([3.0, 2.0, 2.5, 1.0][k] for k in places) <= 6.5,
    }
    assert used[kind] and plan.candidates and all(c.fits for c in plan.candidates.values() if c.choice == plan.choice)


@pytest.mark.parametrize("seed", range(3))
def test_a_cap_on_the_increase_is_met_by_measurement_and_the_plan_is_small(seed: int) -> None:
    objective = planned.objective("mlp", seed)
    every = of_plans(objective, MLP, itertools.product((2, 3, 4, 8), repeat=3))
    cap = float(np.quantile(list(every.values()), 0.4))
    plan = lh.plan(objective, budget={"increase": cap}, **QUICK)
    assert plan.measured <= cap and increase(objective, plan) <= cap * (1 + 1e-4) + 1e-7
    sizes = [weight.numel for weight in plan.weights]
    bits = {own: sum(k * n for k, n in zip(own, sizes, strict=True)) for own in every}
    smallest = min(bits[own] for own, value in every.items() if value <= cap)
    assert plan.mean_bits * sum(sizes) <= 1.15 * smallest
    assert plan.counts.measuring + plan.counts.portfolio <= 3.0 * len(plan.rows)


def test_budgets_that_no_plan_meets_say_the_nearest() -> None:
    objective = planned.objective()
    with refused(objective.model, "no plan", "2"):
        lh.plan(objective, budget="1.5bit", **QUICK)
    with refused(objective.model, "no plan"):
        lh.plan(objective, budget="50 bytes", **QUICK)
    with refused(objective.model, "no plan keeps the increase", "nearest"):
        lh.plan(objective, (2,), {"increase": 1e-9}, **QUICK)
    every = of_plans(objective, MLP, itertools.product((2, 8), repeat=3))
    sizes = [72, 144, 36]
    least = min(v for own, v in every.items() if sum(k * n for k, n in zip(own, sizes, strict=True)) <= 4 * 252)
    with refused(objective.model, f"increases it by {least:.4g}"):  # of those within the other limits
        lh.plan(objective, (2, 8), {"increase": least / 2, "bits": 4}, **QUICK)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_gives_its_own_plan(criterion: str) -> None:
    objective = planned.objective()
    plan = lh.plan(objective, budget="3bit", criterion=criterion, verify=False)
    assert plan.criterion == criterion and plan.mean_bits <= 3.0
    assert plan.measured == pytest.approx(increase(objective, plan), rel=1e-4, abs=1e-7)
    if criterion in ("hawq_v2", "hawq", "fisher"):  # additive: the best of all by its own column
        column = {(r.layer, r.option.bits): getattr(r, f"predicted_{criterion}") for r in plan.rows}  # type: ignore[union-attr]
        sizes = [weight.numel for weight in plan.weights]
        fitting = [
            own
            for own in itertools.product((2, 3, 4, 8), repeat=3)
            if sum(k * n for k, n in zip(own, sizes, strict=True)) <= 3 * sum(sizes)
        ]
        best = min(fitting, key=lambda own: sum(column[n, k] for n, k in zip(MLP, own, strict=True)))
        assert tuple(plan.choice[n].bits for n in MLP) == best  # type: ignore[union-attr]
        assert plan.found_by == criterion and plan.optimal


def test_a_cap_on_the_increase_needs_measured_increases() -> None:
    objective = planned.objective()
    with refused(objective.model, "increase", "criterion='measured'"):
        lh.plan(objective, budget={"increase": 0.1}, criterion="hawq_v2", verify=False)


@pytest.mark.parametrize("couplings", COUPLINGS)
def test_every_kind_of_interactions(couplings: str) -> None:
    objective = planned.objective()
    plan = lh.plan(objective, budget="3bit", couplings=couplings, **QUICK)
    assert plan.couplings == couplings and plan.mean_bits <= 3.0
    assert all(plan.measured <= one.measured for one in plan.baselines.values() if one.fits)
    assert np.isnan(plan.interactions).all() == (couplings == "none")
    if couplings == "none":
        assert plan.predicted == plan.predicted_block
    else:
        assert plan.predicted != plan.predicted_block
        assert (couplings == "hessian") == (plan.counts.curvature > 0.0)


def test_allowed_pinned_and_tied_are_obeyed() -> None:
    plan = lh.plan(
        planned.objective(), (2, 3, 4), "8bit", allowed={"0.*": [2, 3]}, pinned={"4.weight": 6}, tied=[MLP[:2]], **QUICK
    )
    assert plan.choice["4.weight"] == Quantize(6)
    assert plan.choice["0.weight"] == plan.choice["2.weight"] == Quantize(3)  # as large as both may be
    assert plan.settings["pinned"] == {"4.weight": "w6"} and plan.settings["tied"] == [MLP[:2]]
    whole = lh.plan(planned.objective(), layers={"all": "*"}, budget="4bit", **QUICK)
    assert set(whole.choice.values()) == {Quantize(4)}


@pytest.mark.parametrize("asked", [{"pinned": {MLP[0]: 2, MLP[1]: 4}}, {"allowed": {MLP[0]: [2], MLP[1]: [4]}}])
def test_tied_layers_that_have_nothing_in_common_are_refused_by_name(asked: dict[str, Any]) -> None:
    objective = planned.objective()
    with refused(objective.model, "tied", "0.weight"):
        lh.plan(objective, (2, 4), tied=[MLP[:2]], **asked, **QUICK)


def test_sparsity_functions_and_groups() -> None:
    def quartered(weight: Tensor) -> Tensor:
        return (weight * 4.0).round() / 4.0

    quartered.bits = 5.0  # type: ignore[attr-defined]
    options = (Prune(0.5), Prune("2:4"), quartered, lh.Quantize(4, "group:6", scale="mse"), 8)
    objective = planned.objective()
    with untouched(objective.model):
        plan = lh.plan(objective, options, "8bit", **QUICK)
    assert plan.mean_bits <= 8.0 and plan.measured == pytest.approx(increase(objective, plan), rel=1e-4, abs=1e-7)
    out = {(row.layer, row.option.name) for row in plan.rows if not row.allowed}
    assert out == {("0.weight", "2:4 sparse")}  # its rows of six are no multiple of four
    assert all(math.isnan(row.measured) == (not row.allowed) for row in plan.rows)
    (row,) = [r for r in plan.rows if r.layer == "2.weight" and r.option.name == "2:4 sparse"]
    assert row.bits == 0.5 * 34


def test_an_option_whose_loss_is_nan_is_out_and_said() -> None:
    def burst(weight: Tensor) -> Tensor:
        return weight * 1e30

    objective = planned.objective()
    objective = lh.Objective(objective.model, objective.data, nn.MultiMarginLoss(p=2))
    with untouched(objective.model):
        plan = lh.plan(objective, (4, burst), {"bits": 32}, **QUICK)
    bad = [row for row in plan.rows if row.option.name == "burst" and not row.allowed]
    assert bad and all(row.why_not == "the loss is NaN or infinite" and row.measured == math.inf for row in bad)
    assert any(f"burst is out for {bad[0].layer}: the loss is NaN or infinite" in warning for warning in plan.warnings)
    assert math.isfinite(plan.measured)


def test_when_nothing_is_left_of_a_layer_it_is_refused() -> None:
    def burst(weight: Tensor) -> Tensor:
        return weight * 1e30

    objective = planned.objective()
    objective = lh.Objective(objective.model, objective.data, nn.MultiMarginLoss(p=2))
    with refused(objective.model, "no option is left for", "the loss is NaN or infinite"):
        lh.plan(objective, (burst,), {"bits": 32}, **QUICK)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        torch.rand(3)  # the global random state is another each time
        lh.plan(planned.objective(), budget="3bit", seed=5, out=tmp_path / "plan")
        texts.append((tmp_path / "plan" / "plan.json").read_bytes())
    assert texts[0] == texts[1]
    loaded = lh.load_plan(tmp_path / "plan")
    assert plan_file.json_text_of(loaded).encode() == texts[0]
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def right(output: Tensor, target: Tensor) -> Tensor:
    return output.argmax(1) == target


def test_held_out_data_and_a_metric() -> None:
    objective = planned.objective()
    x, y = planned.points(99, 60)
    plan = lh.plan(objective, budget="3bit", metric=right, held_out=(x, y), curvature=False)
    model = objective.model
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def held(choice: Any) -> np.ndarray[Any, Any]:
        own = {**weights, **{n: lh_changed(o.bits, weights[n]) for n, o in choice.items()}}
        with torch.no_grad():
            z = torch.func.functional_call(model, own, (x,))
            losses = F.cross_entropy(z.double(), y, reduction="none")
        return np.stack([losses.numpy(), right(z, y).double().numpy()])

    start, own = held({}), held(plan.choice)
    assert plan.held_out_loss is not None and plan.metric is not None and plan.metric_float is not None
    assert plan.held_out_loss.value == pytest.approx(start[0].mean(), rel=1e-5)
    assert plan.metric.value == pytest.approx(own[1].mean())
    assert plan.metric_float.value == pytest.approx(start[1].mean()) and plan.metric_name == "right"
    for one in [*plan.baselines.values(), *plan.random]:
        found = held(one.choice)
        assert one.held_out is not None and one.metric is not None and one.against_plan is not None
        assert one.held_out.value == pytest.approx((found - start)[0].mean(), rel=1e-4, abs=1e-6)
        assert one.held_out.error == pytest.approx((found - start)[0].std(ddof=1) / math.sqrt(60), rel=1e-3, abs=1e-7)
        assert one.metric.value == pytest.approx(found[1].mean())
        assert one.against_plan.value == pytest.approx((found - own)[0].mean(), rel=1e-4, abs=1e-6)
        assert one.against_plan.error == pytest.approx((found - own)[0].std(ddof=1) / math.sqrt(60), rel=1e-3, abs=1e-7)
    assert "on held-out data" in plan.verdict


def test_held_out_data_may_shuffle_and_is_looked_at_first() -> None:
    objective = planned.objective()
    x, y = planned.points(99, 60)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 25, shuffle=True)
    plan = lh.plan(objective, budget="3bit", held_out=loader, curvature=False)
    assert plan.held_out_loss is not None and math.isfinite(plan.held_out_loss.value)
    heard: list[str] = []
    with refused(objective.model, "class index 7"):
        lh.plan(objective, held_out=(x, y + 5), progress=lambda done, most, what: heard.append(what), **QUICK)
    assert set(heard) <= {"the data"}  # before any work
    other = planned.objective("conv")
    with refused(objective.model, "another model"):
        lh.plan(objective, held_out=other, **QUICK)


@pytest.mark.parametrize("failing", ["raises", "nan"])
def test_a_metric_that_fails_leaves_the_plan(failing: str) -> None:
    def metric(output: Tensor, target: Tensor) -> Tensor:
        if failing == "raises":
            raise ValueError("no such class")
        return torch.full((len(output),), math.nan)

    plan = lh.plan(planned.objective(), budget="3bit", metric=metric, curvature=False)
    again = lh.plan(planned.objective(), budget="3bit", curvature=False)
    assert plan.choice == again.choice and plan.metric is not None and math.isnan(plan.metric.value)
    assert any("the metric metric" in warning and "the plan is kept" in warning for warning in plan.warnings)


def test_verdicts_are_worded_by_what_can_be_told_apart() -> None:
    objective = planned.objective()
    plan = lh.plan(objective, budget="3bit", curvature=False)
    uniform = plan.baselines["uniform w3"]
    assert uniform.against_plan is not None
    sure = abs(uniform.against_plan.value) > 2.0 * uniform.against_plan.error
    said = (
        "the plan is uniform w3" if plan.choice == uniform.choice else "better than" if sure else "not distinguishable"
    )
    assert said in plan.verdict and "uniform w3" in plan.verdict


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    objective = planned.objective()
    calls = []

    def told(done: float, most: float, what: str) -> None:
        calls.append(what)
        if what == "each layer with each option":
            press_ctrl_c()

    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt) as caught:
        lh.plan(objective, budget="3bit", out=tmp_path / "plan", progress=told, **QUICK)
    assert any("resume" in note for note in caught.value.__notes__)
    assert all(torch.equal(value, before[name]) for name, value in objective.model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"criterion": "vibes"}, "unknown criterion 'vibes'"),
        ({"couplings": "all"}, "unknown couplings 'all'"),
        ({"seed": -1}, "seed"),
        ({"metric": 3}, "the metric is 3"),
        ({"budget": "4"}, "unknown budget"),
        ({"options": ["x"]}, "unknown option"),
        ({"pinned": {"9.weight": 2}}, "no planned weight is called '9.weight'"),
    ],
)
def test_bad_arguments_are_refused(asked: dict[str, Any], said: str) -> None:
    objective = planned.objective()
    with refused(objective.model, said):
        lh.plan(objective, **asked)


def test_a_plan_needs_an_objective() -> None:
    with refused(None, "the objective is Linear", "lh.Objective"):
        lh.plan(nn.Linear(2, 2))  # type: ignore[arg-type]


# -- losses that are no function of one output ----------------------------------------------------------------------


def summed(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def test_without_a_known_output_interactions_are_hessian_products() -> None:
    known = planned.objective()
    objective = lh.Objective(known.model, known.data, lh.batch_loss(summed))
    plan = lh.plan(objective, budget="3bit", **QUICK)
    assert any("Hessian products" in warning for warning in plan.warnings) and plan.counts.curvature > 0.0
    assert plan.measured == pytest.approx(increase(known, plan), rel=1e-4, abs=1e-7)
    assert all(plan.measured <= one.measured for one in plan.baselines.values() if one.fits)
    assert all(math.isnan(row.kl) for row in plan.rows)


class Stopped(nn.Module):
    """Its derivative is not that of its loss: no Hessian product is allowed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z + 0.3 * (z * z).detach()


@pytest.mark.parametrize("loss", [planned.CE, lh.batch_loss(summed)], ids=["outputs", "nothing"])
def test_where_curvature_is_refused_a_plan_is_still_measured(loss: Any) -> None:
    known = planned.objective()
    plan = lh.plan(lh.Objective(Stopped(known.model), known.data, loss), budget="3bit", verify=False)
    assert plan.mean_bits <= 3.0 and any("no column of" in warning for warning in plan.warnings)
    assert all(plan.measured <= one.measured for one in plan.baselines.values() if one.fits)
    if loss is not planned.CE:
        assert any("interactions between layers are not known" in warning for warning in plan.warnings)
    with pytest.raises(lh.CheckError):
        lh.plan(lh.Objective(Stopped(known.model), known.data, loss), couplings="hessian", **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
def test_the_digits_network_gets_the_best_plan_of_all_within_the_passes(bits: int) -> None:
    """Held against all plans that spend the budget: 138 at 4 bits, 169 at 3."""
    from layerhess.cli.demo import objective as digits

    objective, options = digits(), (2, 3, 4, 8)
    plan = lh.plan(objective, options, f"{bits}bit", curvature=False)
    names, sizes = [weight.name for weight in plan.weights], np.array([weight.numel for weight in plan.weights])
    assert len(plan.rows) == len(names) * len(options)
    assert plan.counts.measuring + plan.counts.portfolio <= 3.0 * len(plan.rows)
    every = np.array(list(itertools.product(options, repeat=len(names))))
    used, larger = every @ sizes, np.select([every == 2, every == 3, every == 4], [1, 1, 4], 1000)
    fitting = every[(used <= bits * sizes.sum()) & (used[:, None] + larger * sizes > bits * sizes.sum()).all(1)]
    values = of_plans(objective, names, [tuple(map(int, row)) for row in fitting])
    assert plan.measured <= min(values.values()) * (1.0 + 1e-5)
    assert plan.measured < plan.baselines[f"uniform w{bits}"].measured


# -- other models ---------------------------------------------------------------------------------------------------


def test_a_language_model_with_its_own_loss_and_padding() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    data = []
    for seed, (rows, length) in enumerate([(3, 8), (4, 6)]):  # with other numbers of labels in each batch and sequence
        ids = torch.randint(0, 23, (rows, length), generator=torch.Generator().manual_seed(seed))
        mask = (torch.arange(length) < torch.arange(length, length - rows, -1)[:, None]).long()
        data.append({"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask == 1, -100)})
    objective = lh.Objective(model, data)
    with untouched(model):
        plan = lh.plan(objective, (2, 4), "3bit", curvature=False)
    assert {w.name: w.aliases for w in plan.weights}["transformer.wte.weight"] == ("lm_head.weight",)
    other = copy.deepcopy(model)
    lh.apply_plan(other, plan)
    losses = []
    for one in (model, other):
        with torch.no_grad():
            parts = [one(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.double() for b in data]
        sums = [
            F.cross_entropy(z[:, :-1].flatten(0, 1), b["labels"][:, 1:].flatten(), reduction="sum")
            for z, b in zip(parts, data, strict=True)
        ]
        losses.append(float(sum(sums)) / sum(int((b["labels"][:, 1:] != -100).sum()) for b in data))
    assert plan.loss == pytest.approx(losses[0], rel=1e-6)
    assert plan.measured == pytest.approx(losses[1] - losses[0], rel=1e-4, abs=1e-7)
    assert math.isfinite(plan.predicted) and plan.predicted != plan.predicted_block
    assert all(math.isfinite(row.kl) and row.kl >= 0.0 for row in plan.rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    known = planned.objective()
    model = copy.deepcopy(known.model).to(dtype)
    data = [(x.to(dtype), y) for x, y in known.data]
    with untouched(model):
        plan = lh.plan(lh.Objective(model, data, planned.CE), budget="3bit", **QUICK)
    assert plan.measured == pytest.approx(increase(lh.Objective(model, data, planned.CE), plan), rel=1e-6)
    assert plan.float_bytes == 252 * (8 if dtype == torch.float64 else 2)
    assert all(plan.measured <= one.measured for one in plan.baselines.values() if one.fits)


def test_batch_norm_in_training_is_planned_with_its_batches_and_dropout_is_refused() -> None:
    known = planned.objective("conv")
    model = copy.deepcopy(known.model).train()
    with untouched(model):
        plan = lh.plan(lh.Objective(model, known.data, planned.CE), budget="3bit", **QUICK)
    assert plan.measured == pytest.approx(increase(lh.Objective(model, known.data, planned.CE), plan), rel=1e-3)
    dropped = nn.Sequential(copy.deepcopy(planned.objective().model), nn.Dropout(0.5)).train()
    data = planned.objective().data
    with refused(dropped, "dropout", "mode='eval'"):
        lh.plan(lh.Objective(dropped, data, planned.CE), **QUICK)
    assert lh.plan(lh.Objective(dropped, data, planned.CE, mode="eval"), budget="3bit", **QUICK).mean_bits <= 3.0


def test_frozen_weights_are_not_planned_and_said() -> None:
    known = planned.objective()
    model = copy.deepcopy(known.model)
    model[2].requires_grad_(False)  # type: ignore[index]
    plan = lh.plan(lh.Objective(model, known.data, planned.CE), budget="3bit", **QUICK)
    assert list(plan.choice) == ["0.weight", "4.weight"]
    assert any("frozen" in warning and "2.weight" in warning for warning in plan.warnings)


def test_a_metric_or_held_out_data_are_measured_without_a_verification_too() -> None:
    plan = lh.plan(planned.objective(), budget="3bit", metric=right, held_out=planned.points(99, 60), **QUICK)
    whole = lh.plan(planned.objective(), budget="3bit", metric=right, held_out=planned.points(99, 60), curvature=False)
    for name in ("metric", "metric_float", "held_out_loss"):  # with errors that are NaN
        assert asdict(getattr(plan, name)) == asdict(getattr(whole, name))
    assert not plan.random and not plan.verdict


def test_progress_counts_passes_up_to_what_was_said() -> None:
    heard: list[tuple[float, float, str]] = []
    lh.plan(planned.objective(), budget="3bit", progress=lambda *told: heard.append(told), curvature=False)
    done = [one[0] for one in heard]
    assert done == sorted(done) and all(one[0] <= one[1] + 1e-9 for one in heard)
    assert {"the data", "each layer with each option", "candidate plans"} <= {one[2] for one in heard}


class Starved(nn.Module):
    """Runs out of memory for more than 30 examples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = copy.deepcopy(planned.objective().model)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory, in this test")
        found: Tensor = self.inner(x)
        return found


def test_batches_that_do_not_fit_into_memory_are_measured_in_pieces() -> None:
    known = planned.objective()
    model = Starved()
    with untouched(model):
        held = planned.points(99, 60)
        plan = lh.plan(lh.Objective(model, known.data, planned.CE), budget="3bit", held_out=held, **QUICK)
    whole = lh.plan(known, budget="3bit", held_out=held, **QUICK)
    assert plan.held_out_loss is not None and whole.held_out_loss is not None
    assert plan.held_out_loss.value == pytest.approx(whole.held_out_loss.value, rel=1e-6)
    assert [o.name for o in plan.choice.values()] == [o.name for o in whole.choice.values()]
    assert plan.measured == pytest.approx(whole.measured, rel=1e-5)


def test_a_finished_run_is_not_made_again(tmp_path: Path) -> None:
    objective = planned.objective()
    first = lh.plan(objective, (2, 4, 8), out=tmp_path / "plan", **QUICK)
    calls: list[str] = []
    again = lh.plan(
        objective, (2, 4, 8), out=tmp_path / "plan", resume=True, progress=lambda *told: calls.append(told[2]), **QUICK
    )
    assert again.choice == first.choice and again.measured == first.measured and set(calls) == {"the data"}
    with pytest.raises(lh.InputError, match="the run that is to be resumed is another one: budget was"):
        lh.plan(objective, (2, 4, 8), "3bit", out=tmp_path / "plan", resume=True, **QUICK)
    assert lh.load_plan(tmp_path / "plan").budget == first.budget


def test_a_sparse_option_that_is_large_is_neither_the_base_nor_what_a_plan_is_held_against() -> None:
    objective = planned.objective()
    plan = lh.plan(objective, (2, 4, 8, lh.Prune(0.5)), "20bit", curvature=False)
    best = min((one for one in plan.baselines.values() if one.name.startswith("uniform")), key=lambda one: one.measured)
    assert best.name in plan.verdict and "sparse" not in plan.verdict
    assert plan.predicted == pytest.approx(plan.measured, abs=0.5 * abs(plan.measured) + 1e-4)


def test_a_loaded_plan_is_given_its_functions(tmp_path: Path) -> None:
    def halved(weight: Tensor) -> Tensor:
        return (weight * 2.0).round() / 2.0

    objective = planned.objective()
    plan = lh.plan(objective, (halved,), {"bits": 32}, out=tmp_path / "plan", **QUICK)
    with pytest.raises(lh.InputError, match="functions"):
        lh.apply_plan(copy.deepcopy(objective.model), lh.load_plan(tmp_path / "plan"))
    with pytest.raises(lh.InputError, match="no option 'other'"):
        lh.load_plan(tmp_path / "plan", functions=[types.FunctionType(halved.__code__, {}, "other")])
    model = copy.deepcopy(objective.model)
    lh.apply_plan(model, lh.load_plan(tmp_path / "plan", functions=[halved]))
    for name in plan.choice:
        assert torch.equal(model.get_parameter(name), halved(objective.model.get_parameter(name)))


@pytest.mark.parametrize(
    "arguments",
    [{"allowed": [2]}, {"pinned": ["0.weight"]}, {"pinned": "x"}, {"tied": 3}, {"tied": "x"}],
)
def test_other_kinds_of_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(lh.InputError, match=next(iter(arguments))):
        lh.plan(planned.objective(), **arguments, **QUICK)


@pytest.mark.parametrize("given", ["model", "plan"])
def test_apply_plan_takes_a_module_and_a_plan(given: str) -> None:
    objective = planned.objective()
    plan = lh.plan(objective, **QUICK)
    with pytest.raises(lh.InputError, match=f"the {given} is"):
        lh.apply_plan(*((objective, plan) if given == "model" else (objective.model, plan.choice)))
