"""Saving again: atomic, and never at the cost of what was there before."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis, rewrite_report
from layerhess.errors import InputError, LayerhessWarning
from layerhess.results import atomic_folder, result_folder
from likeness import same, snapshot


def test_saving_again_replaces_the_whole_folder(saved: Path) -> None:
    second = fabricated.analysis(bad=True)
    second.save(saved)
    assert same(second, lh.load(saved))
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_put_into_an_old_result_is_kept(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "plots").mkdir()
    (saved / "plots" / "a.png").write_bytes(b"png")
    fabricated.analysis(bad=True).save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "plots" / "a.png").read_bytes() == b"png"
    assert list(saved.parent.iterdir()) == [saved]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert same(fabricated.analysis(), lh.load(fabricated.analysis().save(tmp_path / "run")))


@pytest.mark.parametrize("full_at", ["tensors", "analysis.json", "report.html", "fsync", "swap"])
def test_a_full_disk_leaves_the_old_result_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    before = snapshot(saved)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_write, real_rename = atomic_folder.write, os.rename

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
        monkeypatch.setattr(atomic_folder, "fsync_folder", full)
    elif full_at == "swap":
        monkeypatch.setattr(os, "rename", rename)
    else:
        monkeypatch.setattr(atomic_folder, "write", write)
    with pytest.raises(InputError, match="disk is full") as caught:
        fabricated.analysis(bad=True).save(saved)
    assert str(saved) in caught.value.where and caught.value.what_to_do
    assert snapshot(saved) == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file's size")
def test_a_file_size_limit_of_the_system_is_reported_and_harmless(saved: Path) -> None:
    """The real thing: the kernel refuses to write more than 20 kB, in the middle of the vectors file."""
    before = snapshot(saved)
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import torch, fabricated
from layerhess.results import store
from layerhess.results.derived import Derived
from layerhess.errors import InputError
big = fabricated.spectrum("w", (100_000,))
try:
    fabricated.analysis(blocks={"w": big}, full=None).save(sys.argv[1])
except InputError as error:
    print(error)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
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
        fabricated.analysis(bad=True).save(saved)
    assert snapshot(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_after_a_crash_between_the_renames_the_old_result_is_loaded(saved: Path) -> None:
    saved.rename(saved.parent / ".run.old")
    assert same(fabricated.analysis(), lh.load(saved))
    second = fabricated.analysis(bad=True)
    second.save(saved)
    assert same(second, lh.load(saved)) and list(saved.parent.iterdir()) == [saved]


def test_after_a_crash_before_the_deletion_the_new_result_is_loaded(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    old = fabricated.analysis(bad=True).save(tmp_path / "other" / "run")
    (old / "notes.txt").write_text("mine")
    old.rename(saved.parent / ".run.old")
    assert same(fabricated.analysis(), lh.load(saved))
    fabricated.analysis().save(saved)
    assert not (saved.parent / ".run.old").exists()
    assert (saved / "notes.txt").read_text() == "mine"


def test_what_a_dead_writer_left_is_swept_and_a_live_one_is_not(saved: Path) -> None:
    stale, live, foreign = (saved.parent / f".run.writing-{name}" for name in ("dead", "live", "foreign"))
    for folder in (stale, live, foreign):
        folder.mkdir()
        (folder / "analysis.json").write_text("{")
    (stale / ".tmp9SPC5R").write_bytes(b"half of the vectors")  # by safetensors, which renames it at the end
    (foreign / "thesis.tex").write_text("mine")
    for folder in (stale, foreign):
        os.utime(folder, (1, 1))
    fabricated.analysis().save(saved)
    assert not stale.exists() and live.exists() and (foreign / "thesis.tex").exists()


def test_a_reader_never_mixes_two_results(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is replaced between the reading of its two files."""
    second = fabricated.analysis(bad=True)
    real, pending = Path.read_bytes, [True]

    def read_bytes(path: Path) -> bytes:
        content = real(path)
        if path.name == "analysis.json" and pending:
            pending.clear()
            second.save(saved)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(result_folder, "kind_of", lambda folder: result_folder.ANALYSIS)
    assert same(second, lh.load(saved))


def test_a_fault_in_the_report_does_not_cost_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(analysis: Analysis) -> str:
        raise ZeroDivisionError("<oops>")

    monkeypatch.setattr("layerhess.show.report.as_html", fault)
    with pytest.warns(LayerhessWarning, match="the report could not be made"):
        folder = fabricated.analysis().save(tmp_path / "run")
    assert same(fabricated.analysis(), lh.load(folder))
    assert "&lt;oops&gt;" in (folder / "report.html").read_text()
    monkeypatch.undo()
    rewrite_report(folder)
    assert "oops" not in (folder / "report.html").read_text()


def test_a_file_that_is_open_for_a_moment_is_waited_for_on_windows(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.rename, [2]

    def rename(source: Path, target: Path) -> None:
        if ".writing-" in str(source) and refused[0]:
            refused[0] -= 1
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    before = snapshot(saved)
    with pytest.raises(InputError):  # here nothing is waited for: who may not write is told so
        fabricated.analysis(bad=True).save(saved)
    assert snapshot(saved) == before
    refused[0] = 2
    monkeypatch.setattr(atomic_folder, "_PAUSES", (0.0, 0.0))
    fabricated.analysis(bad=True).save(saved)
    assert same(fabricated.analysis(bad=True), lh.load(saved)) and list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(("code", "harmless"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_share_that_syncs_no_folders_can_be_written_to(
    code: int, harmless: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if harmless:
        fabricated.analysis(bad=True).save(saved)
        assert same(fabricated.analysis(bad=True), lh.load(saved))
    else:
        with pytest.raises(InputError):
            fabricated.analysis(bad=True).save(saved)
