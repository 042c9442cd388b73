"""Records come back as they were written; what is torn is not there; a disk that is full leaves the file as it was."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from layerhess.curvature.counters import Counters
from layerhess.curvature.journal import Journal
from layerhess.curvature.record_file import RecordFile, digest_of
from layerhess.curvature.totals import Totals
from layerhess.errors import InputError

TENSORS = [
    torch.randn(3, 4, dtype=torch.float64),
    torch.randn(2, 6).T,
    torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16),
    torch.zeros(0, 5),
    torch.tensor(7),
    torch.tensor([True, False]),
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


# -- the journal -------------------------------------------------------------------------------------------------------


def some_totals() -> Totals:
    totals = Totals()
    totals.add(("loss", "a"), 0.1)
    totals.add("n", 3)
    totals.open(("product", "w"), 2, 3)
    totals.add(("product", "w"), torch.randn(2, 2).double(), slice(0, 2), slice(1, 3))
    totals.append("count", 1.0, float("inf"))
    totals.append(("form", "w"), torch.randn(2, 1), torch.randn(2, 1))
    totals.add_rows("r", 4, [(torch.randn(2, 4), torch.tensor([1.0, -1.0]))], room=1 << 20)
    totals.add_rows("s", 2, [(torch.randn(3, 2), torch.ones(3))], room=1 << 20)
    totals.drop("gone", "why not")
    return totals


def everything(totals: Totals) -> tuple[Any, str]:
    kept, tensors = totals.content()
    return kept, digest_of(tensors)


def test_totals_are_told_again_as_they_were(tmp_path: Path) -> None:
    counters = Counters()
    journal = Journal(tmp_path / "j", counters)
    journal.settled("early", [1, 2.5])
    journal.begin({"model": {}})
    with counters.during("solve"):

        def make() -> Totals:
            counters.count("products", 5)
            with counters.during("unit"):
                counters.count("forwards")
            return some_totals()

        made, told = journal.once("q", make, state=lambda: {"kept": 2})
    assert told is None and journal.settled("late", "x") == "x"
    journal.close()

    later = Counters()
    again = Journal(tmp_path / "j", later, resume=True)
    assert again.known == {"model": {}} and again.replaying
    assert again.settled("early", 0) == [1, 2.5] and again.settled("late", "y") == "x"
    assert again.settled("unheard of", False) is False
    with later.during("solve"):
        totals, told = again.once("q", lambda: pytest.fail("it is made again"))
    assert told == {"kept": 2} and everything(totals) == everything(made) and not again.replaying
    assert later.counts().by_phase == counters.counts().by_phase
    assert later.earlier > 0.0 and later.seconds["unit"] == counters.seconds["unit"]
    again.remove()
    assert not list(tmp_path.iterdir())


def test_an_answer_never_meets_another_question(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", Counters())
    journal.begin({})
    journal.once("q", some_totals)
    journal.close()
    again = Journal(tmp_path / "j", Counters(), resume=True)
    with pytest.raises(InputError, match="pass 1 .* asked something else"):
        again.once("another", some_totals)


def test_a_journal_that_cannot_be_written_says_so_and_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "j", Counters())
    journal.begin({})
    journal.once("q", some_totals)
    before = (tmp_path / "j").read_bytes()

    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    assert isinstance(journal.once("r", some_totals)[0], Totals)
    assert "No space left" in journal.failure and "after pass 1" in journal.failure
    assert (tmp_path / "j").read_bytes() == before


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, Counters())
    journal.begin({})
    assert journal.settled("a", 1) == 1 and journal.once("", some_totals)[1] is None and not journal.active
    journal.remove()
    assert not list(tmp_path.iterdir())
