"""Folders that are not ours to replace, and saved analyses that were damaged: refused with a sentence."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fabricated
import layerhess as lh
from layerhess.analysis.result import Analysis
from layerhess.errors import InputError
from layerhess.results import json_format, store
from layerhess.results.spectrum import Spectrum
from likeness import snapshot

# -- refusals before work ----------------------------------------------------------------------------------------------


def refusal(path: Path) -> InputError:
    """Both doors refuse, with a sentence that says where and what to do."""
    with pytest.raises(InputError) as early:
        store.check_writable(path)
    with pytest.raises(InputError) as late:
        fabricated.analysis().save(path)
    assert str(early.value) == str(late.value)
    assert early.value.where and early.value.what_to_do
    return early.value


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    assert "is a file" in str(refusal(tmp_path / "run"))
    assert "is a file" in str(refusal(tmp_path / "run" / "inner"))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"format": "something else"}', "\udcff"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    if content is not None:
        (folder / "analysis.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    before = snapshot(folder)
    assert "holds no analysis" in str(refusal(folder))
    assert snapshot(folder) == before


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "current folder" in str(refusal(Path(".")))
    assert "root" in str(refusal(Path("/")))


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InputError, match="has no name"):
        store.check_writable("")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "cannot be written" in str(refusal(tmp_path / "run"))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere, and so may Windows"
)
def test_a_read_only_parent_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert "cannot be written" in str(refusal(tmp_path / "run"))
    finally:
        tmp_path.chmod(0o755)


def test_check_writable_accepts_and_leaves_nothing(tmp_path: Path, saved: Path) -> None:
    before = snapshot(saved)
    assert store.check_writable(tmp_path / "a" / "b") == (tmp_path / "a" / "b").resolve()
    assert store.check_writable(saved) == saved
    assert list(tmp_path.iterdir()) == [saved] and snapshot(saved) == before


def test_a_result_larger_than_the_disk_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MB free"):
        store.check_writable(tmp_path / "run", expected_bytes=1 << 60)


# -- damaged results ---------------------------------------------------------------------------------------------------


def damaged(folder: Path, file: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        lh.load(folder)
    assert file in caught.value.where and caught.value.what_to_do


def edit(folder: Path, change: Any) -> None:
    path = folder / "analysis.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"loss": NaN}', b"[" * 100_000, b"{}", b'{"format": 3}']
)
def test_text_that_is_no_analysis_is_refused(saved: Path, content: bytes) -> None:
    (saved / "analysis.json").write_bytes(content)
    damaged(saved, "analysis.json", "cannot be read")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Analysis)] + ["vectors"])
def test_a_missing_key_is_named(saved: Path, field: str) -> None:
    edit(saved, lambda document: document.pop(field))
    damaged(saved, "analysis.json", rf"{field}(\.sha256)? is missing")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Spectrum)])
def test_a_missing_key_of_a_block_is_named(saved: Path, field: str) -> None:
    edit(saved, lambda document: document["blocks"]["head.weight"].pop(field))
    damaged(saved, "analysis.json", rf"blocks\.head\.weight\.{field} is missing")


@pytest.mark.parametrize(
    ("where", "value", "match"),
    [
        (("loss",), "12", "loss is a string, not a number"),
        (("loss",), True, "loss is true or false, not a number"),
        (("loss",), 10**400, "int too large"),
        (("batches",), 1.5, "batches is a number, not an integer"),
        (("batches",), True, "batches is true or false, not an integer"),
        (("model",), None, "model is null, not a string"),
        (("blocks",), [], "blocks is a list, not an object"),
        (("full",), 3, "full is an integer, not an object"),
        (("notes",), "x", "notes is a string, not a list"),
        (("checks", 0, "passed"), 1, r"checks\[0\]\.passed is an integer"),
        (("counts", "by_phase", "solve"), {"products": "x"}, r"counts\.by_phase\.solve\.products is a string"),
        (("full", "eigenvalues"), [1, "x", 2], r"full\.eigenvalues\[1\] is a string"),
        (("full", "eigenvalues"), [1.0], "3 entries for 1 eigenvalues|has 3 entries"),
        (("full", "eigenvectors"), [{"w": "no such tensor"}] * 3, "no tensor named"),
        (("full", "converged"), [1, 0, 1], r"full\.converged\[0\] is an integer"),
        (("blocks", "head.weight", "name"), "other", "name is 'other'"),
    ],
)
def test_a_wrong_value_is_named(saved: Path, where: tuple[Any, ...], value: Any, match: str) -> None:
    def change(document: Any) -> None:
        for key in where[:-1]:
            document = document[key]
        document[where[-1]] = value

    edit(saved, change)
    damaged(saved, "analysis.json", match)


def test_a_newer_schema_is_refused_with_advice(saved: Path) -> None:
    edit(saved, lambda document: document.update(schema=json_format.SCHEMA + 1))
    with pytest.raises(InputError, match=f"schema is version {json_format.SCHEMA + 1}") as caught:
        lh.load(saved)
    assert "update layerhess" in caught.value.what_to_do


@pytest.mark.parametrize("schema", [0, -1, "1", True, None, 1.0])
def test_a_senseless_schema_is_refused(saved: Path, schema: object) -> None:
    edit(saved, lambda document: document.update(schema=schema))
    damaged(saved, "analysis.json", "schema version")


def test_a_flipped_bit_in_the_vectors_is_found(saved: Path) -> None:
    content = bytearray((saved / "vectors.safetensors").read_bytes())
    content[-5] ^= 4
    (saved / "vectors.safetensors").write_bytes(content)
    damaged(saved, "vectors.safetensors", "checksum")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}x"])
def test_vectors_that_are_no_safetensors_are_refused(saved: Path, content: bytes) -> None:
    import hashlib

    (saved / "vectors.safetensors").write_bytes(content)
    edit(saved, lambda document: document["vectors"].update(sha256=hashlib.sha256(content).hexdigest()))
    damaged(saved, "vectors.safetensors", "cannot be read")


def test_missing_vectors_are_refused(saved: Path) -> None:
    (saved / "vectors.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        lh.load(saved)


def test_no_analysis_there(tmp_path: Path, saved: Path) -> None:
    for path, match in [
        (tmp_path / "missing", "no such folder"),
        (tmp_path, "no analysis.json"),
        (saved / "analysis.json", "is a file"),
    ]:
        with pytest.raises(InputError, match=match) as caught:
            lh.load(path)
        assert caught.value.what_to_do


def test_loading_executes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    lh.load(saved)
