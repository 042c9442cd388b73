"""Tables as pandas frames: one row for each eigenvalue, and a frame for every estimate."""

from __future__ import annotations

import sys

import pytest
import torch

import fabricated
import layerhess as lh
from layerhess.errors import InputError
from layerhess.show.frame import COLUMNS, to_frame


def test_the_frame_has_one_row_per_eigenvalue_and_one_for_a_refused_block() -> None:
    made = fabricated.analysis(bad=True)
    frame = made.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == sum(max(1, len(s.eigenvalues)) for s in made.spectra())
    assert list(dict.fromkeys(frame["block"])) == [*made.blocks, "(full)"]
    for s in made.spectra():
        rows = frame[frame["block"] == s.name]
        if len(s.eigenvalues):
            assert rows["eigenvalue"].to_numpy().tobytes() == s.eigenvalues.tobytes()
            assert rows["error_bound"].to_numpy().tobytes() == s.error_bounds.tobytes()
            assert list(rows["end"]) == list(s.end) and list(rows["converged"]) == list(s.converged)
    refused = frame[frame["block"] == "head.weight"]
    assert len(refused) == 1 and refused["eigenvalue"].isna().all() and not refused["converged"].any()
    assert refused["status"].item().startswith("refused")


def test_every_estimate_has_a_frame_of_its_own() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2)).double()
    objective = lh.Objective(model, (torch.randn(12, 4).double(), torch.randn(12, 2).double()), torch.nn.MSELoss())
    found = lh.analyze(objective, diagonal=True, density=lh.Density(probes=2, steps=4), coupling=True)
    assert found.coupling is not None and found.coupling.divergence_error is not None and found.full is not None
    pairs = found.to_frame("coupling")
    assert pairs.norm.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.value)
    assert pairs.standard_error.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.standard_error)
    assert pairs.divergence_error.to_numpy().reshape(4, 4) == pytest.approx(found.coupling.divergence_error)
    assert list(pairs.other[:4]) == list(found.blocks) and set(pairs.operator) == {"hessian"}
    diagonal = found.to_frame("diagonal")
    assert len(diagonal) == 2 * found.total_numel
    whole = diagonal[(diagonal.block == "(full)") & (diagonal.parameter == "0.weight")]
    assert found.full.diagonal is not None
    assert whole.value.to_numpy() == pytest.approx(found.full.diagonal.value["0.weight"].reshape(-1).numpy())
    density = found.to_frame("density")
    block = density[density.block == "0.weight"]
    own = found.blocks["0.weight"].density
    assert own is not None and block.density.to_numpy() == pytest.approx(own.value)
    assert block.high.to_numpy() == pytest.approx(own.high)
    plain = fabricated.analysis()
    assert not any(len(plain.to_frame(table)) for table in ("coupling", "diagonal", "density"))
    with pytest.raises(InputError, match="no table 'traces'.*'coupling'"):
        found.to_frame("traces")


def test_without_pandas_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas is not installed") as caught:
        to_frame(fabricated.analysis())
    assert "pip install 'layerhess[pandas]'" in caught.value.what_to_do
