"""Records come back as they were written; what is torn is not there; a disk that is full leaves the file as it was."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from layerhess.curvature.record_file import RecordFile, digest_of

TENSORS = [
    torch.randn(3, 4, dtype=torch.float64),
    torch.randn(2, 6).T,
    torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16),
    torch.zeros(0, 5),
    torch.tensor(7),
    torch.tensor([True, False]),
    torch.arange(6.0).view(3, 2)[:1, 1],  # with a stride of 2
]


def written(path: Path) -> RecordFile:
    made = RecordFile.create(path, {"kind": "first"}, monotonic)
    made.append({"kind": "second", "x": [1.5, None]}, TENSORS)
    made.append({"kind": "third"}, [torch.arange(40)])
    return made


def test_records_come_back_bit_by_bit(tmp_path: Path) -> None:
    written(tmp_path / "f").close()
    again = RecordFile.open(tmp_path / "f", monotonic)
    assert [entry.kind for entry in again.entries] == ["first", "second", "third"] and not again.ignored
    assert again.header(again.entries[1])["x"] == [1.5, None]
    for one, other in zip(TENSORS, again.tensors(again.entries[1]), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and digest_of([one]) == digest_of([other])
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


@pytest.mark.parametrize("left", [1, 10, 30, 200])
def test_a_torn_end_is_ignored_and_written_over(left: int, tmp_path: Path) -> None:
    written(tmp_path / "f").close()
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(content[:-left])
    again = RecordFile.open(tmp_path / "f", monotonic)
    assert [entry.kind for entry in again.entries] == ["first", "second"] and again.ignored
    again.append({"kind": "third"}, [torch.arange(40)])
    again.close()
    assert (tmp_path / "f").read_bytes() == content


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    written(tmp_path / "f").close()
    content = (tmp_path / "f").read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "f").write_bytes(damaged)
        try:
            again = RecordFile.open(tmp_path / "f", monotonic)
        except ValueError:
            assert place < 200, "its first record"
            continue
        kinds = [entry.kind for entry in again.entries]
        assert kinds in (["first"], ["first", "second"]), "up to the damage"
        assert all(digest_of([a]) == digest_of([b]) for e in again.entries[1:]
                   for a, b in zip(TENSORS, again.tensors(e), strict=True))  # fmt: skip
        again.close()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    room = [100]

    def write(stream: Any, piece: Any) -> None:
        if len(memoryview(piece).cast("B")) > room[0]:
            stream.write(bytes(piece)[: room[0]])
            raise OSError(28, os.strerror(28))
        room[0] -= stream.write(piece)

    monkeypatch.setattr("layerhess.curvature.record_file._write", write)
    with pytest.raises(OSError, match="No space"):
        made.append({"kind": "fourth"}, [torch.arange(1000)])
    assert (tmp_path / "f").read_bytes() == content
    with pytest.raises(OSError, match="No space"):
        RecordFile.create(tmp_path / "f", {"kind": "x" * 1000}, monotonic)
    assert (tmp_path / "f").read_bytes() == content and list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_file_is_renamed_only_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows demands; the file can be written to afterwards."""
    real, streams = os.replace, []
    make = RecordFile.__init__

    def noted(made: RecordFile, path: Path, stream: Any, *others: Any) -> None:
        streams.append(stream)
        make(made, path, stream, *others)

    def replace(source: Path, target: Path) -> None:
        assert streams and all(stream.closed for stream in streams)
        real(source, target)

    monkeypatch.setattr(RecordFile, "__init__", noted)
    monkeypatch.setattr(os, "replace", replace)
    written(tmp_path / "f").close()
    assert [entry.kind for entry in RecordFile.open(tmp_path / "f", monotonic).entries] == ["first", "second", "third"]
