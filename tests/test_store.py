"""Saved analyses: exact, atomic, and never at the cost of what was there before."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabricated
from layerhess import codec, folders, store
from layerhess.derived import Derived
from layerhess.errors import InputError, LayerhessWarning
from layerhess.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate
from layerhess.results import Analysis, Spectrum

FILES = {"analysis.json", "vectors.safetensors", "report.html"}
AWKWARD = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1074, 1e22, np.nextafter(1.0, 2.0)]


def same(a: Any, b: Any) -> bool:
    """Equality down to the last bit; NaN equals NaN; mappings in the same order."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a save; only the tests about the report draw it."""
    if "report" not in request.node.name:
        monkeypatch.setattr("layerhess.show.report.as_html", lambda analysis: "<p>a report</p>")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return store.save(fabricated.analysis(), tmp_path / "run")


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, True])
def test_everything_comes_back_as_it_was(tmp_path: Path, bad: bool) -> None:
    made = fabricated.analysis(bad=bad)
    folder = store.save(made, tmp_path / "deep" / "er" / "run")
    assert {p.name for p in folder.iterdir()} == FILES
    assert same(made, store.load(folder))
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
    text = (store.save(made, tmp_path / "run") / "analysis.json").read_text()
    back = store.load(tmp_path / "run")
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
    back = store.load(store.save(made, tmp_path / "run"))
    for kind in ("trace", "diagonal", "density"):
        assert same(getattr(back.blocks[name], kind), getattr(block, kind))
    assert same(back.coupling, coupling)
    assert back.full is not None and back.full.trace is None


def test_a_document_of_the_first_schema_is_read(tmp_path: Path) -> None:
    """Written before there were estimates: those are absent, all else is there."""
    made = fabricated.analysis()
    document, tensors = codec.encode(made)
    document["schema"] = 1
    del document["coupling"]
    for entry in [*document["blocks"].values(), document["full"]]:
        for key in ("trace", "diagonal", "density", "sampling_errors"):
            del entry[key]
    back = codec.decode(codec.loads(codec.dumps(document).encode()), tensors)
    assert list(back.blocks) == list(made.blocks) and back.coupling is None
    for name, block in back.blocks.items():
        assert block.trace is None and block.eigenvalues.tobytes() == made.blocks[name].eigenvalues.tobytes()
        assert np.isnan(block.sampling_errors).all() and len(block.sampling_errors) == len(block.eigenvalues)


def test_a_document_of_the_second_schema_is_read() -> None:
    """Written before distances had errors, and before densities and diagonals said whether they are finished."""
    coupling = CouplingEstimate(("a",), np.ones((1, 1)), np.zeros((1, 1)), 0.0, 0.0, 16, "fine", np.zeros((1, 1)))
    document, tensors = codec.encode(dataclasses.replace(fabricated.analysis(), coupling=coupling))
    document["schema"] = 2
    del document["coupling"]["divergence_error"]
    assert same(codec.decode(codec.loads(codec.dumps(document).encode()), tensors).coupling, coupling)
    del document["coupling"]["divergence"]
    with pytest.raises(ValueError, match="divergence is missing"):
        codec.decode(document, tensors)


@pytest.mark.parametrize(
    ("density", "diagonal", "finished", "converged"),
    [
        ("30 Lanczos steps from 10 random vectors", "standard error 2 % of the diagonal's norm", True, True),
        (
            "stopped early, after 8 Lanczos steps from 10 random vectors of the 30 steps asked for",
            "standard error 89 % of the diagonal's norm from 32 random vectors, above the 5 % asked for: allow more "
            "probes, or a larger error",
            False,
            False,
        ),
    ],
)
def test_unfinished_estimates_of_the_second_schema_are_known_by_their_sentences(
    density: str, diagonal: str, finished: bool, converged: bool
) -> None:
    made = fabricated.analysis()
    block = dataclasses.replace(made.blocks["stem.weight"], **estimates(made.blocks["stem.weight"].numel))
    document, tensors = codec.encode(dataclasses.replace(made, blocks={**made.blocks, "stem.weight": block}))
    document["schema"] = 2
    entry = document["blocks"]["stem.weight"]
    for kind, status, keys in (("density", density, ("finished",)), ("diagonal", diagonal, ("converged", "required"))):
        entry[kind]["status"] = status
        for key in keys:
            del entry[kind][key]
    back = codec.decode(codec.loads(codec.dumps(document).encode()), tensors).blocks["stem.weight"]
    assert back.density is not None and back.density.finished is finished
    assert back.diagonal is not None and back.diagonal.converged is converged and back.diagonal.ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_eigenvectors_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(40, dtype=torch.float64).to(dtype)
    vectors = [
        {"a.b": whole[:12].view(3, 4), "odd/name [0].x": whole[12:13].reshape(()), "t": whole[13:33].view(4, 5).T},
        {"a.b": whole[:12].view(3, 4), "odd/name [0].x": whole[39], "t": torch.zeros(5, 4, dtype=dtype)},
        {"a.b": torch.full((3, 4), float("nan"), dtype=dtype), "odd/name [0].x": whole[0], "t": whole[20:].view(5, 4)},
    ]
    made = fabricated.analysis(blocks={"fc": fabricated.spectrum("fc", eigenvectors=vectors)}, full=None)
    back = store.load(store.save(made, tmp_path / "run")).blocks["fc"].eigenvectors
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
    assert document["schema"] == codec.SCHEMA and document["converged"] is True
    assert document["blocks"]["stem.weight"]["eigenvalues"] == list(
        fabricated.analysis().blocks["stem.weight"].eigenvalues
    )


def test_derived_numbers_are_in_the_document_for_readers_and_not_read_back(saved: Path) -> None:
    document, tensors = codec.encode(fabricated.analysis())
    block = fabricated.analysis().blocks["head.bias"]
    entry = document["blocks"]["head.bias"]["derived"]
    assert set(entry) == {f.name for f in dataclasses.fields(Derived)}
    figure = block.derived.effective_rank
    assert entry["effective_rank"] == {"value": figure.value, "error": 0.0, "kind": "exact"} and figure.value > 1.0
    assert document["blocks"]["stem.weight"]["derived"]["effective_rank"]["value"] is None
    entry["effective_rank"]["value"] = -1.0
    assert codec.decode(document, tensors).blocks["head.bias"].derived.effective_rank == figure
    del document["blocks"]["head.bias"]["derived"]
    codec.decode(document, tensors)


def test_settings_without_a_json_type_are_kept_as_text(tmp_path: Path) -> None:
    settings = {"out": Path("x/y"), "dtype": torch.bfloat16, "n": np.int64(3), "groups": {"a": ("x.*", "y")}, "f": same}
    back = store.load(store.save(fabricated.analysis(settings=settings), tmp_path / "run"))
    expected = {"out": "x/y", "dtype": "torch.bfloat16", "n": 3, "groups": {"a": ["x.*", "y"]}, "f": "same"}
    assert back.settings == expected


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    name = 'слой "1"\n</script>\ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16")
    made = fabricated.analysis(blocks={name: fabricated.spectrum(name)}, model="模型")
    assert same(made, store.load(store.save(made, tmp_path / "run")))


# -- replacing ---------------------------------------------------------------------------------------------------------


def test_saving_again_replaces_the_whole_folder(saved: Path) -> None:
    second = fabricated.analysis(bad=True)
    store.save(second, saved)
    assert same(second, store.load(saved))
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_put_into_an_old_result_is_kept(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "plots").mkdir()
    (saved / "plots" / "a.png").write_bytes(b"png")
    store.save(fabricated.analysis(bad=True), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "plots" / "a.png").read_bytes() == b"png"
    assert list(saved.parent.iterdir()) == [saved]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert same(fabricated.analysis(), store.load(store.save(fabricated.analysis(), tmp_path / "run")))


@pytest.mark.parametrize("full_at", ["tensors", "analysis.json", "report.html", "fsync", "swap"])
def test_a_full_disk_leaves_the_old_result_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    before = snapshot(saved)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_write, real_rename = folders.write, os.rename

    def write(path: Path, content: bytes) -> None:
        if path.name == full_at:
            path.write_bytes(content[:10])
            full()
        real_write(path, content)

    def rename(source: Path, target: Path) -> None:
        if ".writing-" in str(source):
            full()
        real_rename(source, target)

    if full_at == "tensors":
        monkeypatch.setattr("safetensors.torch.save_file", full)
    elif full_at == "fsync":
        monkeypatch.setattr(folders, "fsync_folder", full)
    elif full_at == "swap":
        monkeypatch.setattr(os, "rename", rename)
    else:
        monkeypatch.setattr(folders, "write", write)
    with pytest.raises(InputError, match="disk is full") as caught:
        store.save(fabricated.analysis(bad=True), saved)
    assert str(saved) in caught.value.where and caught.value.what_to_do
    assert snapshot(saved) == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_size_limit_of_the_system_is_reported_and_harmless(saved: Path) -> None:
    """The real thing: the kernel refuses to write more than 20 kB, in the middle of the vectors file."""
    before = snapshot(saved)
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import torch, fabricated
from layerhess import store
from layerhess.derived import Derived
from layerhess.errors import InputError
big = fabricated.spectrum("w", (100_000,))
try:
    store.save(fabricated.analysis(blocks={"w": big}, full=None), sys.argv[1])
except InputError as error:
    print(error)
"""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert "the disk is full" in done.stdout and str(saved) in done.stdout
    assert snapshot(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_ctrl_c_while_saving_leaves_the_old_result(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(saved)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".writing-" in str(source):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        store.save(fabricated.analysis(bad=True), saved)
    assert snapshot(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_after_a_crash_between_the_renames_the_old_result_is_loaded(saved: Path) -> None:
    saved.rename(saved.parent / ".run.old")
    assert same(fabricated.analysis(), store.load(saved))
    second = fabricated.analysis(bad=True)
    store.save(second, saved)
    assert same(second, store.load(saved)) and list(saved.parent.iterdir()) == [saved]


def test_after_a_crash_before_the_deletion_the_new_result_is_loaded(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    old = store.save(fabricated.analysis(bad=True), tmp_path / "other" / "run")
    (old / "notes.txt").write_text("mine")
    old.rename(saved.parent / ".run.old")
    assert same(fabricated.analysis(), store.load(saved))
    store.save(fabricated.analysis(), saved)
    assert not (saved.parent / ".run.old").exists()
    assert (saved / "notes.txt").read_text() == "mine"


def test_what_a_dead_writer_left_is_swept_and_a_live_one_is_not(saved: Path) -> None:
    stale, live, foreign = (saved.parent / f".run.writing-{name}" for name in ("dead", "live", "foreign"))
    for folder in (stale, live, foreign):
        folder.mkdir()
        (folder / "analysis.json").write_text("{")
    (foreign / "thesis.tex").write_text("mine")
    for folder in (stale, foreign):
        os.utime(folder, (1, 1))
    store.save(fabricated.analysis(), saved)
    assert not stale.exists() and live.exists() and (foreign / "thesis.tex").exists()


def test_a_reader_never_mixes_two_results(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is replaced between the reading of its two files."""
    second = fabricated.analysis(bad=True)
    real, pending = Path.read_bytes, [True]

    def read_bytes(path: Path) -> bytes:
        content = real(path)
        if path.name == "analysis.json" and pending:
            pending.clear()
            store.save(second, saved)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(store, "_is_analysis", lambda folder: True)
    assert same(second, store.load(saved))


def test_a_fault_in_the_report_does_not_cost_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(analysis: Analysis) -> str:
        raise ZeroDivisionError("<oops>")

    monkeypatch.setattr("layerhess.show.report.as_html", fault)
    with pytest.warns(LayerhessWarning, match="the report could not be made"):
        folder = store.save(fabricated.analysis(), tmp_path / "run")
    assert same(fabricated.analysis(), store.load(folder))
    assert "&lt;oops&gt;" in (folder / "report.html").read_text()
    monkeypatch.undo()
    store.rewrite_report(folder)
    assert "oops" not in (folder / "report.html").read_text()


# -- other files -------------------------------------------------------------------------------------------------------


def test_the_report_is_made_anew_and_nothing_else(saved: Path) -> None:
    before = snapshot(saved)
    (saved / "report.html").write_text("old layout")
    assert store.rewrite_report(saved) == saved / "report.html"
    assert snapshot(saved) == before


def test_the_json_text_is_the_file(saved: Path) -> None:
    assert store.json_text(saved) == (saved / "analysis.json").read_text()
    assert store.json_text(saved).endswith("}\n")
