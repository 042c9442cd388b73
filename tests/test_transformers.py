"""The callback in real trainings of Hugging Face's Trainer: the same training, and figures in its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import layerhess as lh

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")

from layerhess.transformers import CurvatureCallback  # noqa: E402


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (12, 8), generator=generator)
    return [{"input_ids": ids[:8], "labels": ids[:8]}, {"input_ids": ids[8:], "labels": ids[8:]}]


def examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 40, (48, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def train(folder: Path, callbacks: list[Any], **settings: Any) -> Any:
    transformers.set_seed(0)
    configuration = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(configuration)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=6,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples(), callbacks=callbacks)
    trainer.train()
    return trainer


class Heard(transformers.TrainerCallback):
    """Stands for an integration that reports somewhere."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def test_a_training_is_the_same_bit_by_bit_and_the_figures_are_in_its_log(tmp_path: Path) -> None:
    callback, heard, plain = CurvatureCallback(batches(), every=4, overhead=None, optimizer=True), Heard(), Heard()
    ours = train(tmp_path, [heard, callback])
    random_state = torch.get_rng_state()
    without = train(tmp_path, [plain])
    assert torch.equal(random_state, torch.get_rng_state())
    weights = without.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())

    points = callback.monitor.points
    assert [point.step for point in points] == [4, 8, 12] and not callback.monitor.failure
    name = "curvature/(full)/lambda_max"
    logged = [(entry["step"], entry[name]) for entry in ours.state.log_history if name in entry]
    assert logged == [(point.step, point.full.lambda_max) for point in points]
    assert [(step, logs[name]) for step, logs in heard.logs if name in logs] == logged
    assert any(key.endswith("attn.c_attn.weight/bound") for key in points[0].metrics())
    assert points[0].full.ratio > 0.0 == points[-1].full.ratio  # the schedule has ended at a rate of 0
    # The trainer's own lines are the same, at the same steps.
    own = [(step, logs["loss"]) for step, logs in heard.logs if "loss" in logs]
    assert own == [(step, logs["loss"]) for step, logs in plain.logs if "loss" in logs] and len(own) == 2


def test_figures_hold_against_a_converged_reference(tmp_path: Path) -> None:
    callback = CurvatureCallback(batches(), every=12, overhead=None, out=tmp_path / "out")
    trainer = train(tmp_path, [callback])
    hessian = lh.Hessian(lh.Objective(trainer.model, batches(), mode="eval"), "weight")
    (point,) = callback.monitor.points
    for name in ("(full)", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"):
        reading = point.readings[name]
        truth = lh.eigsh(hessian.block(name), tol=1e-5)
        assert abs(truth.values[0] - reading.lambda_max) <= reading.bound + truth.error_bounds[0]
    assert len(lh.load_history(tmp_path / "out").points) == 1


def test_what_cannot_be_used_is_refused_when_the_training_begins(tmp_path: Path) -> None:
    with pytest.raises(lh.InputError, match="overhead is -1"):
        train(tmp_path, [CurvatureCallback(batches(), overhead=-1)])
