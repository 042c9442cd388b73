"""Saved analyses: all that was in them comes back, to the last bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis, rewrite_report
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate
from layerhess.results import json_format, store
from layerhess.results.derived import Derived
from layerhess.results.record import SampledGroups
from layerhess.results.spectrum import Spectrum
from likeness import same, snapshot

FILES = {"analysis.json", "vectors.safetensors", "report.html"}
AWKWARD = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1074, 1e22, np.nextafter(1.0, 2.0)]


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, True])
def test_everything_comes_back_as_it_was(tmp_path: Path, bad: bool) -> None:
    made = fabricated.analysis(bad=bad)
    folder = made.save(tmp_path / "deep" / "er" / "run")
    assert {p.name for p in folder.iterdir()} == FILES
    assert same(made, lh.load(folder))
    assert list(folder.parent.iterdir()) == [folder], "nothing else is left beside the result"


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = np.array([*AWKWARD, np.nan, np.inf, -np.inf])
    size = len(values)
    block = fabricated.spectrum(
        eigenvalues=values,
        error_bounds=values[::-1].copy(),
        conditional_bounds=values,
        sampling_errors=values,
        converged=np.arange(size) % 2 == 0,
        end=("top",) * size,
        eigenvectors=[],
        spectrum=values,
    )
    made = fabricated.analysis(blocks={block.name: block}, loss=float("nan"), gradient_norm=float("inf"))
    text = (made.save(tmp_path / "run") / "analysis.json").read_text()
    back = lh.load(tmp_path / "run")
    assert back.blocks[block.name].eigenvalues.tobytes() == values.tobytes()
    assert back.blocks[block.name].spectrum.tobytes() == values.tobytes()
    assert np.isnan(back.loss) and back.gradient_norm == np.inf
    assert "NaN" not in text and "Infinity" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


def estimates(numel: int) -> dict[str, Any]:
    """One of each kind of estimate, with numbers that JSON has no short text for."""
    rng = np.random.default_rng(0)
    shape = {"weight": torch.rand(numel, dtype=torch.float64)}
    return {
        "trace": TraceEstimate(np.pi, 0.1, 3.0, np.inf, 16, "hutchinson", True, "fine", np.nan),
        "diagonal": DiagonalEstimate(shape, {"weight": shape["weight"] / 7}, 16, "hutchinson", "fine", False, True),
        "density": DensityEstimate(
            grid=rng.random(5), value=rng.random(5), low=rng.random(5), high=rng.random(5), bandwidth=0.1, probes=2,
            steps=3, nodes=rng.random((2, 3)), weights=rng.random((2, 3)), mean=1 / 3, mean_error=1e-300,
            second=2 / 3, second_error=0.0, status="fine", finished=False,
        ),
    }  # fmt: skip


def test_estimates_come_back_to_the_last_bit(tmp_path: Path) -> None:
    made = fabricated.analysis()
    name = next(iter(made.blocks))
    block = dataclasses.replace(made.blocks[name], **estimates(made.blocks[name].numel))
    rng = np.random.default_rng(1)
    coupling = CouplingEstimate(
        ("a", "b"),
        rng.random((2, 2)),
        rng.random((2, 2)),
        0.1,
        0.01,
        16,
        "fine",
        rng.random((2, 2)),
        rng.random((2, 2)),
    )
    made = dataclasses.replace(made, blocks={**made.blocks, name: block}, coupling=coupling)
    back = lh.load(made.save(tmp_path / "run"))
    for kind in ("trace", "diagonal", "density"):
        assert same(getattr(back.blocks[name], kind), getattr(block, kind))
    assert same(back.coupling, coupling)
    assert back.full is not None and back.full.trace is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_eigenvectors_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(40, dtype=torch.float64).to(dtype)
    vectors = [
        {"a.b": whole[:12].view(3, 4), "odd/name [0].x": whole[12:13].reshape(()), "t": whole[13:33].view(4, 5).T},
        {"a.b": whole[:12].view(3, 4), "odd/name [0].x": whole[39], "t": torch.zeros(5, 4, dtype=dtype)},
        {"a.b": torch.full((3, 4), float("nan"), dtype=dtype), "odd/name [0].x": whole[0], "t": whole[20:].view(5, 4)},
    ]
    made = fabricated.analysis(blocks={"fc": fabricated.spectrum("fc", eigenvectors=vectors)}, full=None)
    back = lh.load(made.save(tmp_path / "run")).blocks["fc"].eigenvectors
    for before, after in zip(vectors, back, strict=True):
        assert list(before) == list(after)
        for name, tensor in before.items():
            assert after[name].dtype == dtype and after[name].shape == tensor.shape
            bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, after[name])]
            assert bits[0].equal(bits[1])


def test_keys_are_the_attribute_names(saved: Path) -> None:
    document = json.loads((saved / "analysis.json").read_text())
    assert {f.name for f in dataclasses.fields(Analysis)} <= set(document)
    assert {f.name for f in dataclasses.fields(Spectrum)} <= set(document["full"])
    assert list(document["blocks"]) == list(fabricated.analysis().blocks)
    assert document["schema"] == json_format.SCHEMA and document["converged"] is True
    assert document["blocks"]["stem.weight"]["eigenvalues"] == list(
        fabricated.analysis().blocks["stem.weight"].eigenvalues
    )


def test_derived_numbers_are_in_the_document_for_readers_and_not_read_back(saved: Path) -> None:
    document, tensors = json_format.encode(fabricated.analysis())
    block = fabricated.analysis().blocks["head.bias"]
    entry = document["blocks"]["head.bias"]["derived"]
    assert set(entry) == {f.name for f in dataclasses.fields(Derived)}
    figure = block.derived.effective_rank
    assert entry["effective_rank"] == {"value": figure.value, "error": 0.0, "kind": "exact"} and figure.value > 1.0
    assert document["blocks"]["stem.weight"]["derived"]["effective_rank"]["value"] is None
    entry["effective_rank"]["value"] = -1.0
    assert json_format.decode(document, tensors).blocks["head.bias"].derived.effective_rank == figure
    del document["blocks"]["head.bias"]["derived"]
    json_format.decode(document, tensors)


def test_settings_without_a_json_type_are_kept_as_text(tmp_path: Path) -> None:
    settings = {"out": Path("x/y"), "dtype": torch.bfloat16, "n": np.int64(3), "groups": {"a": ("x.*", "y")}, "f": same}
    back = lh.load(fabricated.analysis(settings=settings).save(tmp_path / "run"))
    expected = {"out": "x/y", "dtype": "torch.bfloat16", "n": 3, "groups": {"a": ["x.*", "y"]}, "f": "same"}
    assert back.settings == expected


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    name = 'слой "1"\n</script>\ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16")
    made = fabricated.analysis(blocks={name: fabricated.spectrum(name)}, model="模型")
    assert same(made, lh.load(made.save(tmp_path / "run")))


# -- other files -------------------------------------------------------------------------------------------------------


def test_the_report_is_made_anew_and_nothing_else(saved: Path) -> None:
    before = snapshot(saved)
    (saved / "report.html").write_text("old layout")
    assert rewrite_report(saved) == saved / "report.html"
    assert snapshot(saved) == before


def test_the_json_text_is_the_file(saved: Path) -> None:
    assert store.json_text(saved) == (saved / "analysis.json").read_text()
    assert store.json_text(saved).endswith("}\n")


def test_sums_by_group_come_back_and_results_from_before_they_were_kept_are_read(saved: Path) -> None:
    made = fabricated.analysis()
    name, groups = "stem.weight", SampledGroups("print", np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    block = dataclasses.replace(made.blocks[name], sampling_sums=np.arange(15.0).reshape(3, 5) / 7.0)
    made = dataclasses.replace(made, blocks={**made.blocks, name: block}, groups=groups)
    back = lh.load(made.save(saved))
    assert same(back.groups, groups) and same(back.blocks[name], block)
    assert back.blocks["head.weight"].sampling_sums.shape == (3, 0)

    document = json.loads((saved / "analysis.json").read_text())
    document["schema"] = 1
    del document["groups"]
    for spectrum in [*document["blocks"].values(), document["full"]]:
        del spectrum["sampling_sums"]
    (saved / "analysis.json").write_text(json.dumps(document))
    old = lh.load(saved)
    assert old.groups is None and old.blocks[name].sampling_sums.shape == (3, 0)
    assert same(old.blocks[name].eigenvalues, block.eigenvalues) and same(old.full, made.full)


@pytest.mark.parametrize("sums", [[[1.0]] * 3, [[1.0, 2.0]] * 2, [1.0, 2.0, 3.0]])
def test_sums_that_do_not_fit_the_groups_are_damage(saved: Path, sums: object) -> None:
    document, tensors = json_format.encode(fabricated.analysis(groups=SampledGroups("print", np.array([1.0, 2.0]))))
    document["full"]["sampling_sums"] = sums
    with pytest.raises(ValueError, match=r"full\.sampling_sums"):
        json_format.decode(document, tensors)


@pytest.mark.parametrize("schema", [1, 2])
def test_densities_of_earlier_versions_offer_functions_too(tmp_path: Path, schema: int) -> None:
    """They had nodes and weights, and neither the dimension nor what is known beside the quadratures."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2))
    data = (torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2)
    objective = lh.Objective(model, data, torch.nn.CrossEntropyLoss())
    made = lh.analyze(objective, operator="gauss_newton", density=lh.Density(probes=4, steps=12))
    path = made.save(tmp_path / "run") / "analysis.json"
    document = json.loads(path.read_text())
    document["schema"] = schema
    for spectrum in (*document["blocks"].values(), document["full"]):
        for key in list(spectrum["density"])[list(spectrum["density"]).index("finished") + 1 :]:
            del spectrum["density"][key]
        if schema == 1:
            del spectrum["sampling_sums"]
    if schema == 1:
        del document["groups"]
    path.write_text(json.dumps(document))
    back = lh.load(path.parent)
    for mine, theirs in zip(made.spectra(), back.spectra(), strict=True):
        ours, old = mine.density, theirs.density
        assert ours is not None and old is not None
        assert old.numel == ours.numel and old.axis == "linear" and old.resolution == ours.resolution
        a, b = ours.effective_dimension(0.1), old.effective_dimension(0.1)
        assert abs(a.value - b.value) <= 4.0 * np.hypot(a.standard_error, b.standard_error)
        assert b.standard_error > 0.0  # what rounding was, is not known
