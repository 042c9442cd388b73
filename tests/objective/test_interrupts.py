"""Ctrl-C waits for a safe point of an analysis, not of a single product; and nothing stops a model from coming back."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layerhess as lh
from ctrl_c import press_ctrl_c
from delicate import BATCHES, Armed, delicate
from layerhess.objective import snapshot as restore
from witness import untouched


@pytest.mark.usefixtures("no_graph_is_kept", "ctrl_c_raises")
def test_a_second_ctrl_c_cannot_stop_the_model_from_coming_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Impatient users press twice; the second one lands while the model is being put back."""
    model = delicate()
    objective = lh.Objective(model, BATCHES, nn.CrossEntropyLoss())
    put_back = restore._SavedModule.put_back
    pressed = []

    def impatient(saved: Any) -> None:
        if saved.module is model.second:
            pressed.append(1)
            press_ctrl_c()
        put_back(saved)

    monkeypatch.setattr(restore._SavedModule, "put_back", impatient)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        lh.analyze(objective, top=2, tol=1e-4, progress=Armed(press_ctrl_c, 2))
    assert pressed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_during_a_single_product_is_not_deferred() -> None:
    model = delicate()
    hessian = lh.Hessian(lh.Objective(model, BATCHES, lambda o, t: press_ctrl_c() or F.cross_entropy(o, t)))
    with untouched(model), pytest.raises(KeyboardInterrupt):
        hessian.matvec(torch.ones(hessian.shape[0]))
