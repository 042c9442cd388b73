"""A training with the monitor: bit by bit the same as without, and figures whose bounds hold."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.monitor.loggers import TABLE
from layerhess.results.history import NAME
from monitored import (
    Explicit,
    adamw,
    bits,
    bounds_hold,
    data,
    nesterov,
    noisy_network,
    seed_all,
    state,
    tanh_network,
    train,
)

LOSS = nn.CrossEntropyLoss()


@pytest.mark.parametrize("mode", ["as-is", "eval"])
@pytest.mark.parametrize("make", [nesterov, adamw])
def test_training_is_the_same_bit_by_bit_with_and_without_the_monitor(make, mode: str, tmp_path: Path) -> None:
    def run(monitored: bool) -> list[Any]:
        seed_all()
        model = noisy_network().train()
        optimizer, seen = make(model), []
        monitor = None
        if monitored:
            objective = lh.Objective(model, data(), LOSS, mode=mode)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", lh.LayerhessWarning)  # of P from another mode
                monitor = lh.Monitor(objective, every=5, overhead=None, optimizer=optimizer, out=tmp_path / "m")

        def after(step: int) -> None:
            if monitor is not None:
                point = monitor.step()
                assert (point is not None) == (step % 5 == 0), monitor.failure
            if step % 10 == 0:
                seen.append(state(model, optimizer))

        train(model, optimizer, 100, after)
        assert monitor is None or (len(monitor.points) == 20 and not monitor.failure)
        return seen

    assert run(True) == run(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", ["weight", "parameter"])
def test_bounds_hold_at_every_point_against_the_explicit_hessian(blocks: str, dtype: torch.dtype) -> None:
    model = tanh_network().to(dtype)
    x, y = data()
    objective = lh.Objective(model, (x.to(dtype), y), LOSS)
    monitor = lh.Monitor(objective, every=10, overhead=None, blocks=blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    for _ in range(120):
        optimizer.zero_grad()
        LOSS(model(x.to(dtype)), y).backward()
        optimizer.step()
        if (point := monitor.step()) is not None:
            bounds_hold(model, point)
    assert len(monitor.points) == 12
    frame = monitor.to_frame()
    assert len(frame) == 12 * (len(objective.parameters) // (2 if blocks == "weight" else 1) + 1)
    assert frame.block.iloc[-1] == "(full)"
    assert (frame.gradients == 1).all() and (frame.products >= 3).all()  # the smallest block has three


def test_a_model_with_dropout_is_followed_without_it() -> None:
    seed_all()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)).train()
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=5, overhead=None)
    train(model, nesterov(model), 20, lambda step: (p := monitor.step()) and bounds_hold(model, p))
    assert len(monitor.points) == 4 and any("dropout is off" in note for note in monitor.notes)
    assert model.training and model[2].training


def test_batchnorm_in_train_mode_keeps_the_batchs_statistics_beside_dropout() -> None:
    """Against the same network without dropout, whose loss is that of train mode."""
    seed_all()
    noisy = noisy_network().train()
    plain = copy.deepcopy(noisy)
    plain[3] = nn.Identity()
    tops = []
    for model in (noisy, plain):
        monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=None)
        point = monitor.step()
        assert point is not None, monitor.failure
        tops.append({name: reading.lambda_max for name, reading in point.readings.items()})
    assert list(tops[0].values()) == list(tops[1].values())


def test_an_optimizers_state_of_another_mode_is_warned_of() -> None:
    """A bias before BatchNorm has no gradient in train mode, but curvature in eval mode: P is about 1e-8 there."""
    model = noisy_network().train()
    objective = lh.Objective(model, data(), LOSS, mode="eval")
    with pytest.warns(lh.LayerhessWarning, match="says nothing"):
        monitor = lh.Monitor(objective, every=10, overhead=None, optimizer=(optimizer := adamw(model)))
    train(model, optimizer, 20, lambda step: monitor.step())
    assert monitor.points[-1].full.ratio > 100.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lh.Monitor(objective, optimizer=nesterov(model))
        lh.Monitor(lh.Objective(model, data(), LOSS), optimizer=optimizer)


def test_the_generators_of_a_loader_are_left_as_they_were() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data()), batch_size=8, shuffle=True, generator=generator
    )
    monitor = lh.Monitor(lh.Objective(tanh_network(), loader, LOSS), every=1, overhead=None)
    before = bits([generator.get_state(), torch.get_rng_state()])
    assert monitor.step() is not None, monitor.failure
    assert bits([generator.get_state(), torch.get_rng_state()]) == before


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99)), 3.6 / 0.2),
        (lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.99), amsgrad=True), 3.8 / 0.1),
        (lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5), 3.0),
        (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True), 3.8 / 2.8),
    ],
)
def test_preconditioned_sharpness_is_that_of_the_explicit_matrix(make, factor: float) -> None:
    model = tanh_network()
    optimizer = make(model.parameters())
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=8, overhead=None, optimizer=optimizer)
    train(model, optimizer, 24, lambda step: monitor.step())
    assert not monitor.failure
    truth = Explicit.of(model, data())
    root = np.concatenate([explicit_root(optimizer, p) for p in model.parameters()])
    values = np.linalg.eigvalsh(root[:, None] * truth.matrix * root)
    full = monitor.points[-1].full
    assert full is not None
    assert np.abs(values - full.preconditioned).min() <= full.preconditioned_bound
    assert abs(full.preconditioned - values[-1]) <= 0.02 * values[-1]
    assert full.threshold == pytest.approx(factor / 0.01)
    assert full.ratio == pytest.approx(full.preconditioned / full.threshold)


def explicit_root(optimizer: torch.optim.Optimizer, p: Tensor) -> np.ndarray:
    """P^-1/2 of a parameter, from the update rules as torch's documentation has them."""
    own, group = optimizer.state[p], optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        return np.ones(p.numel())
    if isinstance(optimizer, torch.optim.RMSprop):
        weight = np.sqrt(own["square_avg"].double().numpy() - own["grad_avg"].double().numpy() ** 2) + group["eps"]
    else:
        b1, b2 = group["betas"]
        t = int(own["step"])
        v = own["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double().numpy() / (1 - b2**t)
        weight = (1 - b1**t) * (np.sqrt(v) + group["eps"])
    return weight.reshape(-1) ** -0.5


def test_groups_with_rates_of_their_own_are_compared_with_their_own_limits() -> None:
    model = tanh_network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=None, optimizer=optimizer)
    train(model, optimizer, 3, lambda step: monitor.step())
    rate = np.concatenate([np.full(35, 0.1), np.full(18, 0.01)])
    truth = Explicit.of(model, data()).matrix
    stable = np.abs(np.linalg.eigvals(np.eye(53) - rate[:, None] * truth)).max()  # of a step of w' = w - R H w
    least = np.linalg.eigvals(rate[:, None] * truth).real.max() / 2.0
    full = monitor.points[-1].full
    assert full is not None and full.ratio == pytest.approx(least, abs=full.preconditioned_bound / full.threshold)
    assert stable < 1.1 and full.threshold == pytest.approx(20.0)


def test_results_go_to_the_folder_and_to_every_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "tensorboard" else found(name, *rest)
    )
    model, heard = tanh_network(), []
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=2, overhead=None, out=tmp_path / "run")
    monitor.attach(lambda metrics, step: heard.append((step, metrics)))
    assert lh.load_history(tmp_path / "run").points == []
    train(model, nesterov(model), 6, lambda step: monitor.step())
    monitor.close()
    again = lh.load_history(tmp_path / "run")
    assert list(map(asdict, again.points)) == list(map(asdict, monitor.points)) and len(again.points) == 3  # NaN too
    assert again.settings["parameters"] == 53 and again.share > 0.0
    assert [step for step, _ in heard] == [2, 4, 6]
    names = {
        f"curvature/{block}/{kind}" for block in ("0.weight", "2.weight", "(full)") for kind in ("lambda_max", "bound")
    }
    assert set(heard[0][1]) == names
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([NAME, TABLE, "report.html"])
    assert not monitor.failure
    frame = monitor.to_frame()
    table = np.genfromtxt(tmp_path / "run" / TABLE, delimiter=",", names=True, dtype=None, encoding="utf-8")
    np.testing.assert_array_equal(table["lambda_max"], frame.lambda_max)


def test_tensorboards_own_reader_finds_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = lh.Monitor(lh.Objective(tanh_network(), data(), LOSS), every=1, overhead=None, out=tmp_path)
    points = [monitor.step() for _ in range(3)]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(points[0].metrics())
    found = events.Scalars("curvature/(full)/lambda_max")
    assert [one.step for one in found] == [1, 2, 3]
    assert [one.value for one in found] == pytest.approx([p.full.lambda_max for p in points], rel=1e-6)


def test_tensorboard_gets_the_figures_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            written.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append("flushed")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    stand_in = type(sys)("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monitor = lh.Monitor(lh.Objective(tanh_network(), data(), LOSS), every=1, overhead=None, out=tmp_path)
    point = monitor.step()
    assert point is not None and point.full is not None
    assert written[0] == str(tmp_path) and written[-1] == "flushed"
    assert ("curvature/(full)/lambda_max", point.full.lambda_max, 1) in written


def test_after_a_failure_the_points_until_then_are_kept_and_the_history_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = lh.Monitor(lh.Objective(tanh_network(), data(4), LOSS), every=1, overhead=None, blocks=None, out=tmp_path)
    monkeypatch.setattr("layerhess.monitor.monitor.OFTEN", 1)  # so that the file lacks points until it is closed
    for _ in range(3):
        monitor.step()
    monkeypatch.setattr(monitor, "_point", lambda: 1 / 0)
    with pytest.warns(lh.LayerhessWarning, match="stopped at step 4"):
        monitor.step()
    monitor.close()
    history = lh.load_history(tmp_path)
    assert [point.step for point in history.points] == [1, 2, 3]
    assert any("stopped at step 4: ZeroDivisionError" in note for note in history.notes)
    assert "stopped at step 4" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_with_an_analysis_is_not_taken_for_a_history(tmp_path: Path) -> None:
    objective = lh.Objective(tanh_network(), data(), LOSS)
    lh.analyze(objective, "weight", full=False, out=tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_bytes()
    with pytest.raises(lh.InputError, match="holds an analysis"):
        lh.Monitor(objective, out=tmp_path / "a")
    assert (tmp_path / "a" / "report.html").read_bytes() == page
    with pytest.raises(lh.InputError, match="out is 5"):
        lh.Monitor(objective, out=5)  # type: ignore[arg-type]


def test_the_history_of_a_long_training_is_complete_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerhess.monitor.monitor.OFTEN", 2)
    monitor = lh.Monitor(lh.Objective(tanh_network(), data(4), LOSS), every=1, overhead=None, blocks=None, out=tmp_path)
    for _ in range(23):
        monitor.step()
    assert len(lh.load_history(tmp_path).points) == 17
    monitor.close()
    assert len(lh.load_history(tmp_path).points) == 23


def test_the_whole_model_or_the_blocks_may_be_left_out() -> None:
    objective = lh.Objective(tanh_network(), data(), LOSS)
    alone, blocks = lh.Monitor(objective, 1, None, overhead=None), lh.Monitor(objective, 1, full=False, overhead=None)
    assert list(alone.step().readings) == ["(full)"] and list(blocks.step().readings) == ["0.weight", "2.weight"]


def test_the_same_seed_gives_the_same_points() -> None:
    def run(seed: int) -> Any:
        model = tanh_network()
        monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=3, overhead=None, seed=seed)
        seed_all()
        train(model, nesterov(model), 9, lambda step: monitor.step())
        return [asdict(point)["readings"] for point in monitor.points]

    assert run(0) == run(0) != run(1)


def test_a_share_that_is_allowed_is_kept() -> None:
    """The digits' bar is in the slow tests; here, a training whose steps take a known time."""
    import time

    model = tanh_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=1, overhead=0.5, blocks=None, optimizer=optimizer)
    train(model, optimizer, 150, lambda step: (time.sleep(0.005), monitor.step()))
    assert len(monitor.points) >= 2, monitor
    assert 0.0 < monitor.share <= 0.6


def test_what_cannot_be_used_is_refused_before_the_training(tmp_path: Path) -> None:
    objective = lh.Objective(tanh_network(), data(), LOSS)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data()), batch_size=8, num_workers=1, persistent_workers=True
    )
    kept = lh.Objective(tanh_network(), loader, LOSS)
    (tmp_path / "file").write_text("")
    other = torch.optim.SGD(tanh_network().parameters(), lr=0.1)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tanh_network(), {}, "not an Objective"),
        (objective, {"every": 0}, "every is 0"),
        (objective, {"overhead": 0.0}, "overhead is 0.0"),
        (objective, {"overhead": "much"}, "overhead is 'much'"),
        (objective, {"blocks": "nothing"}, "blocks|scheme"),
        (objective, {"blocks": None, "full": False}, "nothing to follow"),
        (objective, {"full": False, "optimizer": other}, "the whole model's"),
        (objective, {"optimizer": other}, "none of the objective's parameters"),
        (objective, {"out": tmp_path / "file"}, "cannot be made"),
        (objective, {"seed": -1}, "seed is -1"),
        (kept, {}, "persistent workers"),
    ]
    for given, settings, words in cases:
        with pytest.raises(lh.InputError, match=words):
            lh.Monitor(given, **settings)


def test_a_monitor_and_a_point_are_shown_in_a_few_lines() -> None:
    monitor = lh.Monitor(lh.Objective(tanh_network(), data(), LOSS), every=1, overhead=None)
    monitor.step()
    lines = repr(monitor).splitlines()
    assert len(lines) <= 6 and "1 points" in lines[0] and "(full)" in repr(monitor)


def test_a_monitor_without_points_says_when_there_is_time_for_one() -> None:
    model = tanh_network()
    monitor = lh.Monitor(lh.Objective(model, data(), LOSS), every=10, overhead=0.001)
    assert "0 points, not begun" in repr(monitor)
    monitor._forecast = True
    monitor._spacing.expect(0.004, 0.006)
    train(model, nesterov(model), 20, lambda step: monitor.step())
    assert "time for the first one after 1e+01 s" in repr(monitor) and not monitor.points
