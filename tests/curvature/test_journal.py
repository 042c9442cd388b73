"""Sums are told again as they were made, to what was asked, and to other processes as far as they are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layerhess.curvature.counters import Counters
from layerhess.curvature.journal import Journal
from layerhess.curvature.question import Question
from layerhess.curvature.record_file import digest_of
from layerhess.curvature.totals import Totals

Q, R = Question.of(["q"]), Question.of(["r"])
ONE, TWO = {"processes": 1}, {"processes": 2}


def no_pass() -> Totals:
    pytest.fail("it is made again")


def written(path: Path, machine: dict[str, Any], *content: Any) -> Journal:
    """A journal with these questions, and what was settled before."""
    journal = Journal(path, Counters(), machine=machine)
    for settled in content:
        for key, value in settled.items() if isinstance(settled, dict) else ():
            journal.settled(key, value, here=True)
    journal.begin({})
    journal.settled("common", "x")
    journal.settled("size", 12, here=True)
    for asked in content:
        if isinstance(asked, Question):
            journal.once(asked, some_totals, state=lambda: {"kept": 2})
    return journal


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

        made, told = journal.once(Q, make, state=lambda: {"kept": 2})
    assert told is None and journal.settled("late", "x") == "x"
    journal.close()

    later = Counters()
    again = Journal(tmp_path / "j", later, resume=True)
    assert again.known == {"model": {}} and again.replaying
    assert again.settled("early", 0) == [1, 2.5] and again.settled("late", "y") == "x"
    assert again.settled("unheard of", False) is False
    with later.during("solve"):
        totals, told = again.once(Q, lambda: pytest.fail("it is made again"))
    assert told == {"kept": 2} and everything(totals) == everything(made) and not again.replaying
    assert later.counts().by_phase == counters.counts().by_phase
    assert later.earlier > 0.0 and later.seconds["unit"] == counters.seconds["unit"]
    again.remove()
    assert not list(tmp_path.iterdir())


def test_an_answer_never_meets_another_question(tmp_path: Path) -> None:
    journal = written(tmp_path / "j", {}, Q)
    again = Journal(tmp_path / "j", Counters(), resume=True)
    assert again.once(R, some_totals)[1] is None, "made"
    assert not again.replaying and "0 of the 1 passes" in again.notes[0]
    assert again.once(Q, no_pass)[1] == {"kept": 2}
    journal.close()


# -- other processes, or another machine -------------------------------------------------------------------------------


def test_others_are_told_sums_and_decide_anew_what_is_of_batches(tmp_path: Path) -> None:
    by_batch = Question.of(["forms"], by_batch=True)
    written(tmp_path / "j", TWO, Q, by_batch, {"free": 7}).close()
    before = (tmp_path / "j").read_bytes()
    other = Journal(tmp_path / "j", Counters(), resume=True, machine=ONE)
    assert other.settled("free", 9, here=True) == 9 and other.settled("common", 0) == "x"
    assert (tmp_path / "j").read_bytes() == before, "it may be refused yet"
    other.begin({})
    assert other.once(Q, no_pass)[1] == {}, "graphs are kept as these processes will keep them"
    for question in (by_batch, R):
        assert other.once(question, some_totals, state=lambda: {"kept": 1})[1] is None
    assert other.settled("size", 3, here=True) == 3
    other.close()
    for machine, free, told in ((TWO, 7, (Q, by_batch)), (ONE, 9, (by_batch, R))):
        again = Journal(tmp_path / "j", Counters(), resume=True, machine=machine)
        assert again.settled("free", 5, here=True) == free
        assert again.settled("size", 4, here=True) == (3 if machine == ONE else 12)
        again.begin({})
        assert all(again.once(question, no_pass)[1] for question in told), "with what they left"
        again.close()


def test_what_any_rank_found_is_found_again(tmp_path: Path) -> None:
    found, again = set[str](), set[str]()
    journal = Journal(tmp_path / "j", Counters(), machine=TWO)
    journal.watch(found, found.add)
    journal.begin({})
    journal.once(Q, lambda: found.add("block") or some_totals())  # type: ignore[func-returns-value]
    journal.close()
    other = Journal(tmp_path / "j", Counters(), resume=True, machine=ONE)
    other.watch(again, again.add)
    other.once(Q, no_pass)
    assert again == {"block"}


def test_vectors_that_agree_up_to_their_last_digits_ask_the_same(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32):
        rows = torch.randn(2, 9001, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
        asked = Question.of(["w", rows])
        eps = torch.finfo(dtype).eps
        nearly = rows.clone()
        nearly[:, ::30] = torch.nextafter(rows[:, ::30], torch.tensor(9.0, dtype=dtype))
        nearly = Question.of(["w", nearly])
        assert nearly.exact != asked.exact and nearly.is_close(asked)
        moved = rows.clone()
        moved[1, 9000] += 20 * (eps + 1e-14) * torch.linalg.vector_norm(rows[1])
        assert not asked.is_close(Question.of(["w", moved])) and not asked.is_close(Question.of(["v", rows]))
        assert not asked.is_close(Question.of(["w", rows[:1]])) and not asked.is_close(Question.of(["w", -rows]))
    units = [Question.of(["w", row[None]]) for row in torch.eye(300, dtype=torch.float64)]
    assert not any(one.is_close(other) for i, one in enumerate(units) for other in units[:i])
    nan = Question.of(["w", torch.full((1, 3), float("nan"))])
    assert not nan.is_close(nan)
    written(tmp_path / "j", TWO, units[0]).close()
    same = Journal(tmp_path / "j", Counters(), resume=True, machine=TWO)
    almost = Question.of(["w", torch.eye(300, dtype=torch.float64)[:1] * (1.0 - 1e-16)])
    assert almost.is_close(units[0]) and same.once(almost, some_totals)[1] is None, "bit by bit where it was written"


# -- where there is no journal -----------------------------------------------------------------------------------------


def test_a_journal_that_cannot_be_written_says_so_and_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "j", Counters())
    journal.begin({})
    journal.once(Q, some_totals)
    before = (tmp_path / "j").read_bytes()

    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    assert isinstance(journal.once(R, some_totals)[0], Totals)
    assert "No space left" in journal.failure and "after pass 1" in journal.failure
    assert (tmp_path / "j").read_bytes() == before


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, Counters())
    journal.begin({})
    assert journal.settled("a", 1) == 1 and journal.once(None, some_totals)[1] is None and not journal.active
    journal.remove()
    assert not list(tmp_path.iterdir())
