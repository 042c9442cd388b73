"""The callback in real fits of Lightning's Trainer: the same training, and figures in every logger."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from monitored import data, noisy_network

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Any:
    if importlib.util.find_spec(request.param.split(".")[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    return importlib.import_module(request.param)


def module(pl: Any, adam: bool = True) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = noisy_network()

        def forward(self, x):
            return self.network(x)

        def training_step(self, batch, index):
            return LOSS(self(batch[0]), batch[1])

        def configure_optimizers(self):
            if adam:
                return torch.optim.AdamW(self.parameters(), lr=0.01)
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    return Module()


def fit(pl: Any, folder: Path, callbacks: list[Any], loggers: Any = False, adam: bool = True, **settings: Any) -> Any:
    pl.seed_everything(0)
    model = module(pl, adam)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=4, accelerator="cpu", logger=loggers, callbacks=callbacks, default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(model, loader)
    return trainer, model


def monitor_of(every: int = 4, **settings: Any) -> Any:
    from layerhess.lightning import CurvatureMonitor

    return CurvatureMonitor(data(), LOSS, every=every, overhead=None, **settings)


@pytest.mark.parametrize("adam", [False, True])
def test_a_fit_is_the_same_bit_by_bit_with_the_callback(pl: Any, tmp_path: Path, adam: bool) -> None:
    callback = monitor_of(optimizer=True)
    weights, states = [], []
    for callbacks in ([], [callback]):
        _, model = fit(pl, tmp_path, callbacks, adam=adam)
        weights.append(model.state_dict())
        states.append(torch.get_rng_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(*states)
    assert [point.step for point in callback.monitor.points] == [4, 8, 12, 16, 20, 24]
    assert callback.monitor.to_frame().ratio.notna().sum() == 6


def test_every_logger_of_the_trainer_gets_the_figures(pl: Any, tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []

    class Own(pl.loggers.Logger):
        name, version = "own", 0

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics, step=None):
            heard.append((step, dict(metrics)))

    table = pl.loggers.CSVLogger(tmp_path, name="table")
    callback = monitor_of(out=tmp_path / "out")
    fit(pl, tmp_path, [callback], [table, Own()], log_every_n_steps=1000)
    mine = [(step, metrics) for step, metrics in heard if "curvature/(full)/lambda_max" in metrics]
    assert [step for step, _ in mine] == [4, 8, 12, 16, 20, 24]
    assert {"curvature/network.0.weight/lambda_max", "curvature/network.0.weight/bound"} <= set(mine[0][1])
    text = (Path(table.log_dir) / "metrics.csv").read_text()
    assert "curvature/(full)/lambda_max" in text.splitlines()[0]
    assert len(lh.load_history(tmp_path / "out").points) == 6


def test_accumulated_batches_are_one_step(pl: Any, tmp_path: Path) -> None:
    callback = monitor_of(every=1)
    trainer, _ = fit(pl, tmp_path, [callback], accumulate_grad_batches=3)
    assert [point.step for point in callback.monitor.points] == list(range(1, trainer.global_step + 1))
    assert trainer.global_step == 8


def test_what_cannot_be_used_is_refused_when_the_fit_begins(pl: Any, tmp_path: Path) -> None:
    with pytest.raises(lh.InputError, match="every is 0"):
        fit(pl, tmp_path, [monitor_of(every=0)])
