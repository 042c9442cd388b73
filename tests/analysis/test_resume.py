"""A run that was killed and resumed gives the numbers of one that was not, to the last bit; or is refused in words."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerhess as lh
from commands import quick_report
from ctrl_c import send
from delicate import Armed
from killed import assert_same_bits, in_pass, killed
from layerhess.curvature.counters import Counters
from layerhess.curvature.hessian_graph import HessianGraph
from layerhess.curvature.journal import Journal
from layerhess.results import store
from resumed import KINDS, analyze, data, network, objective, uninterrupted


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_report(monkeypatch)


@pytest.mark.parametrize("graphs", ["kept", "not kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    kind: str, graphs: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if graphs == "not kept":
        request.getfixturevalue("no_graph_is_kept")
    make, arguments = KINDS[kind]
    passes = uninterrupted(kind).counts.passes

    def run() -> lh.Analysis:
        return analyze(make(), out=tmp_path / "run", resume=True, **arguments)

    for number in (1, 2, passes // 2):
        killed(run, in_pass(number))
    resumed = run()
    whole = uninterrupted(kind)
    resumed.settings.pop("identity")
    assert_same_bits(whole, resumed)
    assert resumed.counts.passes == passes and resumed.counts.products == whole.counts.products
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is left beside it"


def test_what_is_told_again_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number in (3, 4):
        killed(lambda: analyze(objective(), top=2, out=out, resume=True), in_pass(number))
    journal = Journal(store.journal_path(out), Counters(), resume=True)
    assert journal.passes == 2 + 3, "the pass that was under way is lost, and no other"
    journal.close()


# -- signals -----------------------------------------------------------------------------------------------------------

STOPPED = {signal.SIGINT: (KeyboardInterrupt, None), signal.SIGTERM: (SystemExit, 143)}


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("signum", STOPPED)
def test_a_signal_leaves_a_partial_result_and_the_run_goes_on_to_the_same_bits(
    signum: signal.Signals, tmp_path: Path
) -> None:
    kind, code = STOPPED[signum]
    before = signal.getsignal(signum)
    for passes in (1, 3):
        with pytest.raises(kind) as stop:
            analyze(objective(), top=2, bottom=1, out=tmp_path / "run", resume=True,
                    progress=Armed(partial(send, signum), passes))  # fmt: skip
        assert getattr(stop.value, "code", None) == code and "resume goes on" in " ".join(stop.value.__notes__)
        assert signal.getsignal(signum) is before
        assert lh.load(tmp_path / "run").partial == "interrupted" and store.journal_path(tmp_path / "run").exists()
    resumed = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", resume=True)
    resumed.settings.pop("identity")
    assert_same_bits(uninterrupted("top"), resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("number", [1, 40], ids=["in the self-check", "in a pass"])
@pytest.mark.parametrize("signum", STOPPED)
def test_a_signal_waits_for_one_product_at_most(
    signum: signal.Signals, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = HessianGraph.products, []

    def products(self: HessianGraph, *arguments: Any) -> Any:
        made.append(1)
        if len(made) == number:
            send(signum)
        return real(self, *arguments)

    monkeypatch.setattr(HessianGraph, "products", products)
    with pytest.raises(STOPPED[signum][0]):
        analyze(objective(data=data(n=1)), top=2, out=tmp_path / "run")
    assert len(made) == number


# -- a run that is there -----------------------------------------------------------------------------------------------


def test_a_finished_run_gives_its_result_at_once(tmp_path: Path) -> None:
    first = analyze(objective(), top=2, out=tmp_path / "run")
    before = (tmp_path / "run" / "analysis.json").read_bytes()
    made: list[Any] = []
    watched = nn.CrossEntropyLoss()
    watched.register_forward_hook(lambda *_: made.append(1))
    again = analyze(objective(loss=watched), top=2, out=tmp_path / "run", resume=True)
    assert_same_bits(first, again)
    assert first.counts == again.counts and len(made) <= 3 * len(data()), "the survey, and no more"
    assert (tmp_path / "run" / "analysis.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_result_that_was_saved_just_before_the_end_is_the_result(tmp_path: Path) -> None:
    """The process died between saving and the deletion of the journal."""

    def before_removal(kill: Callable[[], None]) -> None:
        Journal.remove = lambda self: kill()  # type: ignore[method-assign]

    killed(lambda: analyze(objective(), out=tmp_path / "run"), before_removal)
    assert store.journal_path(tmp_path / "run").exists()
    before = (tmp_path / "run" / "analysis.json").read_bytes()
    analyze(objective(), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "analysis.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_a_state_it_begins_at_the_beginning(tmp_path: Path) -> None:
    first = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", resume=True)
    first.settings.pop("identity")
    assert_same_bits(uninterrupted("top"), first)


def test_a_limit_can_be_raised(tmp_path: Path) -> None:
    part = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", max_passes=4)
    assert part.partial and part.counts.passes <= 5
    same = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", max_passes=4, resume=True)
    assert_same_bits(part, same)
    whole = analyze(objective(), top=2, bottom=1, out=tmp_path / "run", resume=True)
    whole.settings.pop("identity")
    assert_same_bits(uninterrupted("top"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed(lambda: analyze(objective(), seed=5, out=out), in_pass(3))
    anew = analyze(objective(), top=2, bottom=1, out=out)
    anew.settings.pop("identity")
    assert_same_bits(uninterrupted("top"), anew)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- another run -------------------------------------------------------------------------------------------------------


def shifted(batches: list[Any]) -> list[Any]:
    (x, y), *rest = batches
    return [(x, y.roll(1)), *rest]


def buffered(value: float) -> nn.Module:
    model = network()
    model.register_buffer("unused", torch.tensor(value))
    return model


OTHERS: dict[str, tuple[Callable[[], lh.Objective], dict[str, Any], str]] = {
    "weights": (lambda: objective(model=network(seed=3)), {}, "weights have other values"),
    "activation": (lambda: objective(model=network(nn.ELU)), {}, "modules"),
    "dtype": (lambda: objective(model=network(dtype=torch.float32), data=data(torch.float32)), {}, "the model's"),
    "buffer": (lambda: objective(model=buffered(2.0)), {}, "buffers"),
    "mode": (lambda: objective(model=network().eval()), {}, "train mode"),
    "examples": (lambda: objective(data=data(seed=2)), {}, "examples are others"),
    "targets": (lambda: objective(data=shifted(data())), {}, "examples are others"),
    "fewer examples": (lambda: objective(data=data(n=3)), {}, "examples was 48 and is 36"),
    "loss": (lambda: objective(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), {}, "loss"),
    "seed": (objective, {"seed": 1}, "seed was 0 and is 1"),
    "tol": (objective, {"tol": 1e-4}, "tol was 0.001 and is 0.0001"),
    "top": (objective, {"top": 3}, "top was 1 and is 3"),
    "estimates": (objective, {"trace": True}, "trace was"),
    "blocks": (objective, {"blocks": lambda name, p: name[0]}, "blocks was"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed, and its journal."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    killed(lambda: analyze(objective(), out=out), in_pass(3))
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_report(monkeypatch)
        analyze(objective(), out=out)
    return out


@pytest.mark.parametrize("state", ["stopped", "finished"])
@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_by_what_differs_and_nothing_is_lost(
    what: str, state: str, request: pytest.FixtureRequest
) -> None:
    make, arguments, words = OTHERS[what]
    out = request.getfixturevalue(state)
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    assert before
    with pytest.raises(lh.InputError, match="is another one") as caught:
        analyze(make(), out=out, resume=True, **arguments)
    assert words in str(caught.value) and "run" in caught.value.where
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def test_the_order_of_the_examples_is_not(tmp_path: Path) -> None:
    """A loader may shuffle."""
    analyze(objective(), out=tmp_path / "run")
    analyze(objective(data=data()[::-1]), out=tmp_path / "run", resume=True)


def test_resume_needs_a_folder() -> None:
    with pytest.raises(lh.InputError, match="needs the folder"):
        analyze(objective(), resume=True)


# -- a state that was damaged ------------------------------------------------------------------------------------------


def test_a_journal_that_is_torn_or_damaged_costs_passes_and_no_number(stopped: Path, tmp_path: Path) -> None:
    content = store.journal_path(stopped).read_bytes()
    whole = analyze(objective())
    for place, change in (
        (-1, "cut"),
        (-9, "flipped"),
        (len(content) * 2 // 3, "cut"),
        (len(content) * 2 // 3, "flipped"),
    ):
        out = tmp_path / "run"
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        store.journal_path(out).write_bytes(content[:place] if change == "cut" else damaged)
        again = analyze(objective(), out=out, resume=True)
        again.settings.pop("identity")
        assert_same_bits(whole, again)
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


@pytest.mark.parametrize("content", [b"", b"layerhess journal 1\n", b"something else entirely"])
def test_what_is_no_journal_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = store.journal_path(tmp_path / "run")
    path.write_bytes(content)
    with pytest.raises(lh.InputError, match="cannot be read") as caught:
        analyze(objective(), out=tmp_path / "run", resume=True)
    assert caught.value.where == str(path) and path.read_bytes() == content
