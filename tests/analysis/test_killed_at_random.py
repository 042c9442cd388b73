"""SIGKILL at random moments: runs of every kind end with the same bits, saving with the old result or the new one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fabricated
import layerhess as lh
from commands import quick_report
from killed import assert_same_bits
from resumed import KINDS, analyze, uninterrupted

KILLS = 30


def ends(act: Callable[[], Any], seconds: float) -> bool:
    """Whether ``act`` ends by itself within that time, in a process of its own; else it is killed."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it raised"
    return not os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize("graphs", ["kept", "not kept"])
def test_thirty_kills_change_no_bit(
    graphs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    quick_report(monkeypatch)
    if graphs == "not kept":
        request.getfixturevalue("no_graph_is_kept")
    rng = random.Random(0)
    kills, runs = 0, 0
    while kills < KILLS:
        kind = list(KINDS)[runs % len(KINDS)]
        make, arguments = KINDS[kind]
        begin = time.monotonic()
        analyze(make(), **arguments)
        lasts = time.monotonic() - begin
        out = tmp_path / f"run{runs}"

        def run() -> None:
            analyze(make(), out=out, resume=True, **arguments)  # noqa: B023 (called in this turn)

        for _ in range(3):
            kills += not ends(run, rng.uniform(0.0, lasts))
        resumed = analyze(make(), out=out, resume=True, **arguments)
        resumed.settings.pop("identity")
        assert_same_bits(uninterrupted(kind), resumed)
        runs += 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"run{number}" for number in range(runs))


@pytest.mark.slow
def test_thirty_kills_while_saving_leave_the_old_result_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_report(monkeypatch)
    rng = random.Random(0)
    big = fabricated.spectrum("w", (20_000,))
    results = [fabricated.analysis(blocks={"w": big}, full=None, model=f"model {i}") for i in range(2)]
    out = tmp_path / "run"
    results[0].save(out)
    begin = time.monotonic()
    results[0].save(out)
    lasts = time.monotonic() - begin
    kills = 0
    while kills < KILLS:
        old, new = lh.load(out).model, f"model {kills % 2}"
        ended = ends(lambda: results[kills % 2].save(out), rng.uniform(0.0, 1.5 * lasts))  # noqa: B023
        kills += not ended
        assert lh.load(out).model in ((new,) if ended else (old, new))
    results[0].save(out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "what dead writers left is swept"
