"""The notebooks and their scripts: they run, and give the numbers they talk about."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "worked_example.py", EXAMPLES / "worked_example.ipynb"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

FULL_TOP, FULL_BOTTOM = 60 + 2 * 962**0.5, -2 * 2**0.5
SPECTRUM = [FULL_TOP, 2 * 2**0.5, 0.0, 0.0, 60 - 2 * 962**0.5, FULL_BOTTOM]

# What the notebook is asked for after its last cell: plain numbers under the script's own names.
READ_OUT = """
import json
names = ("W", "V")
print("NUMBERS" + json.dumps({
    "H_VV": H_VV.tolist(), "H_WW": H_WW.tolist(), "H": H.tolist(),
    "V_top": [float(V_values[-1]), np.abs(V_vectors[:, -1]).tolist()],
    "W_top": [float(W_values[-1]), np.abs(W_vectors[:, -1]).tolist()],
    "power": {n: [power[n][0], power[n][1], power[n][2].flatten().abs().tolist()] for n in names},
    "ours": {n: [float(analysis.blocks[n].eigenvalues[0]), float(analysis.blocks[n].error_bounds[0]),
                 analysis.blocks[n].eigenvectors[0][n].flatten().tolist()] for n in names},
    "complete": [bool(analysis.blocks[n].complete) for n in names],
    "ours_by_power": {n: [float(by_power.blocks[n].eigenvalues[0]), float(by_power.blocks[n].error_bounds[0])]
                      for n in names},
    "full": [float(analysis.full.eigenvalues[0]), float(analysis.full.error_bounds[0])],
    "full_values": full_values.tolist(), "share": float(off_diagonal_share), "gauss_newton": float(gauss_newton_top),
    "stopped": [float(answers.min()), float(answers.max()), float(share_of_121_97)],
}))
"""


@pytest.fixture(scope="module")
def script_numbers() -> dict[str, Any]:
    import contextlib
    import io

    names = runpy.run_path(str(SCRIPT))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(READ_OUT, names)
    return json.loads(printed.getvalue().removeprefix("NUMBERS"))


def executed(path: Path, read_out: str, folder: str) -> dict[str, Any]:
    """What ``read_out`` prints behind NUMBERS when it is the notebook's last cell."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(read_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", folder)
        patch.setenv("PYTHONPATH", str(EXAMPLES.parent))
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", []))
    texts = [output.text for output in notebook.cells[-1].outputs if output.output_type == "stream"]
    return json.loads("".join(texts).removeprefix("NUMBERS"))


@pytest.fixture(scope="module")
def notebook_numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return executed(NOTEBOOK, READ_OUT, str(tmp_path_factory.mktemp("notebook")))


@pytest.fixture(params=["script", "notebook"])
def numbers(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue(f"{request.param}_numbers")


def test_blocks_read_off_by_autograd_are_those_by_hand(numbers: dict[str, Any]) -> None:
    assert numbers["H_VV"] == [[50, 50], [50, 50]]
    g = np.array([2, 2, 1, 1])
    assert numbers["H_WW"] == (2 * np.outer(g, g)).tolist()


@pytest.mark.parametrize(
    ("name", "value", "vector"),
    [("W", 20.0, [0.6325, 0.6325, 0.3162, 0.3162]), ("V", 100.0, [0.7071, 0.7071])],
)
def test_every_way_gives_the_layers_eigenpair(
    numbers: dict[str, Any], name: str, value: float, vector: list[float]
) -> None:
    theta, found = numbers[f"{name}_top"]
    assert theta == pytest.approx(value, rel=1e-12)
    assert found == pytest.approx(vector, abs=5e-5)

    theta, residual, found = numbers["power"][name]
    assert theta == pytest.approx(value, rel=1e-5)
    assert residual < 1e-3
    assert found == pytest.approx(vector, abs=1e-4)

    theta, bound, found = numbers["ours"][name]
    assert abs(theta - value) <= bound < 1e-2
    assert found == pytest.approx(vector, abs=1e-4)  # the largest component is positive, so all are

    theta, bound = numbers["ours_by_power"][name]
    assert abs(theta - value) <= bound <= 1e-2 * value


def test_both_blocks_are_complete(numbers: dict[str, Any]) -> None:
    assert numbers["complete"] == [True, True]


def test_the_full_hessian_has_its_own_spectrum(numbers: dict[str, Any]) -> None:
    value, bound = numbers["full"]
    assert abs(value - FULL_TOP) <= bound < 1e-2
    assert numbers["full_values"] == pytest.approx(SPECTRUM, abs=1e-4)


def test_the_coupling_left_out_is_thirty_per_cent(numbers: dict[str, Any]) -> None:
    assert numbers["share"] == pytest.approx(4512 / 14912, rel=1e-6)
    H = np.array(numbers["H"])
    assert np.sum(H**2) == pytest.approx(14912, rel=1e-6)
    assert pytest.approx(H) == H.T


def test_one_hundred_and_twenty_is_the_top_of_gauss_newton(numbers: dict[str, Any]) -> None:
    assert numbers["gauss_newton"] == pytest.approx(120.0, rel=1e-9)


def test_stopping_by_change_scatters_below_the_truth(numbers: dict[str, Any]) -> None:
    smallest, largest, share = numbers["stopped"]
    assert 0.998 * FULL_TOP < smallest < 121.95
    assert largest <= FULL_TOP + 1e-3
    assert share > 0.01  # 121.97 is among them


READ_TRANSFORMER = """
import json
print("NUMBERS" + json.dumps({
    "test_loss": test_loss, "converged": bool(analysis.converged), "agrees": bool(slice_along.agrees),
    "tops": {n: [float(b.eigenvalues[0]), float(b.error_bounds[0])] for n, b in analysis.blocks.items()},
    "full": [float(analysis.full.eigenvalues[0]), float(analysis.full.error_bounds[0])],
    "mass": sum(analysis.full_mass[0].values()),
}))
"""

READ_WATCHED = """
import json
print("NUMBERS" + json.dumps({
    "losses": [losses[0], losses[-1]], "points": len(whole), "limit": 2 / learning_rate,
    "ratios": whole.ratio.tolist(), "failure": monitor.failure, "blocks": list(frame.block.unique()),
    "last": [float(last.lambda_max), float(last.bound)],
    "again": [float(again.full.eigenvalues[0]), float(again.full.error_bounds[0])],
}))
"""

READ_TRAININGS = """
import json
print("NUMBERS" + json.dumps({name: {
    "log_ratio": b.log_ratio, "scale_free": b.scale_free_log_ratio, "paired": bool(b.paired),
    "significant": bool(b.significant),
    "overlap": b.overlap, "tops": [float(b.first), float(b.second)],
} for name, b in comparison.blocks.items()}))
"""


def test_the_transformer_learns_and_no_layer_is_sharper_than_the_whole(tmp_path: Path) -> None:
    numbers = executed(EXAMPLES / "small_transformer.ipynb", READ_TRANSFORMER, str(tmp_path))
    assert numbers["test_loss"] < 0.6 * np.log(12)
    assert numbers["converged"] and numbers["agrees"]
    top, bound = numbers["full"]
    assert all(value <= top + bound + error for value, error in numbers["tops"].values())
    assert numbers["mass"] == pytest.approx(1.0, abs=1e-4)  # the blocks cover the model


def test_a_watched_training_settles_at_the_edge_of_stability(tmp_path: Path) -> None:
    numbers = executed(EXAMPLES / "watched_training.ipynb", READ_WATCHED, str(tmp_path))
    assert numbers["failure"] == "" and numbers["points"] == 40
    assert numbers["blocks"] == ["0.weight", "2.weight", "4.weight", "(full)"]
    assert numbers["losses"][1] < 0.1 * numbers["losses"][0]
    assert numbers["ratios"][0] < 0.9
    assert np.mean(numbers["ratios"][-10:]) == pytest.approx(1.0, abs=0.05)
    assert abs(numbers["last"][0] - numbers["again"][0]) <= numbers["last"][1] + numbers["again"][1]


def test_weight_decay_makes_layers_sharper_but_not_per_relative_change(tmp_path: Path) -> None:
    blocks = executed(EXAMPLES / "two_trainings.ipynb", READ_TRAININGS, str(tmp_path))
    assert list(blocks) == ["0.weight", "2.weight", "4.weight", "(full)"]
    for name, block in blocks.items():
        first, second = block["tops"]
        assert block["log_ratio"] == pytest.approx(np.log(second / first), rel=1e-9), name
        assert block["paired"] and block["log_ratio"] > 0.2
        assert block["scale_free"] < block["log_ratio"] - 0.3 and abs(block["scale_free"]) < 0.6
        assert 0 < block["overlap"] < 1
    assert blocks["4.weight"]["significant"]  # on seven seeds, the last layer always was


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_the_script(notebook: Path) -> None:
    sys.path.insert(0, str(EXAMPLES))
    try:
        from make_notebook import NOTEBOOKS as MADE
        from make_notebook import notebook_text
    finally:
        sys.path.remove(str(EXAMPLES))
    assert notebook.stem in MADE
    script = notebook.with_suffix(".py").read_text(encoding="utf-8")
    assert notebook.read_text(encoding="utf-8") == notebook_text(script)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")
