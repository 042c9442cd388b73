"""Bad arguments: a sentence with what, where and what to do, and the model untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import layerhess as lh
from refusals import CE, PAIRS, P, Table, X, Y, analysis, mlp
from witness import untouched

TABLE = Table()
case = TABLE.case

NAN = float("nan")


for _operator in ("hesian", None, 3):
    case(f"unknown operator: {_operator!r}", f"unknown operator {_operator!r}", "'hessian'")(
        analysis(operator=_operator)
    )
case("unknown method", "'qr'", "'lanczos'")(analysis(method="qr"))
case("unknown mode", "'train'", "'eval'")(analysis(options={"mode": "train"}))
case("power iteration for two", "one eigenvalue", "top=1")(analysis(method="power", top=2))
for _device in ("gpu", "cuda:99", "meta", 99, None):
    case(f"unknown device: {_device!r}", f"{_device!r} cannot be used", "'cpu'")(
        lambda device=_device: ((model := mlp()), lambda: lh.Objective(model, PAIRS, CE).to(device))
    )
for _tol in (0, -1e-3, float("nan"), 1.0, float("inf"), "small", None, True):
    case(f"tol: {_tol!r}", f"tol is {_tol!r}", "1e-3")(analysis(tol=_tol))
for _top in (-1, 1.5, "x", None, True):
    case(f"top: {_top!r}", f"top is {_top!r}", "integer")(analysis(top=_top))
case("k larger than the model: top", f"top={P + 1}", f"{P} trainable", f"at most {P}")(analysis(top=P + 1))
case("k larger than the model: bottom", f"bottom={P + 1}", f"at most {P}")(analysis(top=0, bottom=P + 1))
case("k larger than the model: eigsh", f"k is {P + 1}", f"1 <= k <= {P}")(
    lambda: ((model := mlp()), lambda: lh.eigsh(lh.Hessian(lh.Objective(model, PAIRS, CE)), k=P + 1))
)
case("nothing asked for", "nothing is asked for", "top=1")(analysis(top=0, bottom=0))
case("resume without a folder", "needs the folder of the run", "give out=")(analysis(resume=True))
for _estimate, _class in {
    "trace": "Trace",
    "diagonal": "Diagonal",
    "density": "Density",
    "coupling": "Coupling",
}.items():
    for _wrong in ("yes", 1, None):
        case(f"{_estimate}: {_wrong!r}", f"{_estimate} is {_wrong!r}", f"lh.{_class}(")(analysis(**{_estimate: _wrong}))
case("sampling errors of nothing", "sampling errors are those of eigenvalues and traces", "trace=True")(
    analysis(top=0, sampling=True, density=True)
)
case("sampling: 'yes'", "sampling is 'yes'", "True or False")(analysis(sampling="yes"))
for _name, _words, _make in (
    ("trace tolerance 0", "rel is 0", lambda: lh.Trace(rel=0.0)),
    ("trace tolerance NaN", "rel is nan", lambda: lh.Trace(rel=NAN)),
    ("trace method", "unknown method 'magic'", lambda: lh.Trace(method="magic")),
    ("one probe", "probes is 1", lambda: lh.Trace(probes=1)),
    ("density of one step", "at least 2 Lanczos steps", lambda: lh.Density(steps=1)),
    ("density of no step", "use steps=30", lambda: lh.Density(steps=0)),
    ("diagonal that is perhaps required", "required is None", lambda: lh.Diagonal(required=None)),
    ("density without probes", "probes is 0", lambda: lh.Density(probes=0)),
    ("density bandwidth", "bandwidth is -1", lambda: lh.Density(bandwidth=-1.0)),
    ("coupling of one probe", "probes is 1", lambda: lh.Coupling(probes=1)),
):
    case(f"estimates: {_name}", _words)(lambda make=_make: (mlp(), make))
for _argument, _value in {
    "max_passes": 0, "time_limit": 0.0, "seed": -1,
}.items():  # fmt: skip
    case(f"{_argument}: {_value}", f"{_argument} is {_value}")(analysis(**{_argument: _value}))
case("time_limit: NaN", "time_limit is nan")(analysis(time_limit=NAN))
case("out: no path", "out is int")(analysis(out=5))
for _size in (0, -3, 2.5, True, "8"):
    case(f"batch_size: {_size!r}", f"batch_size is {_size!r}", "integer >= 1")(analysis(options={"batch_size": _size}))
case("no objective", "Sequential, not an Objective", "lh.Objective(model, data, loss)")(
    lambda: ((model := mlp()), lambda: lh.analyze(model))
)
case("examples: none", "examples is 0")(lambda: ((model := mlp()), lambda: lh.Objective(model, PAIRS, CE).subset(0)))
case("examples: that cannot be told apart", "cannot be told apart", "batch 1")(
    lambda: ((model := mlp()), lambda: lh.Objective(model, [(X, Y), (X, Y[:5])], CE).subset(3))
)


@pytest.mark.parametrize("name", TABLE)
def test_bad_arguments_are_refused_in_words(name: str) -> None:
    TABLE.check(name)


# -- limits, and what is welcome ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"max_passes": 1}, "max_passes=1"), ({"max_passes": 3}, "max_passes=3"), ({"time_limit": 1e-9}, "time_limit")],
    ids=str,
)
def test_past_a_limit_there_is_what_there_is_clearly_unfinished(limit: dict[str, float], said: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    with untouched(model):
        result = lh.analyze(lh.Objective(model, PAIRS, CE), top=2, tol=1e-6, **limit)
    assert said in result.partial and said in str(result)
    assert not result.converged
    unfinished = [spectrum for spectrum in result.spectra() if not spectrum.ok]
    assert result.full in unfinished
    for spectrum in unfinished:
        assert (spectrum.status.startswith("not converged") and not spectrum.converged.all()) or not len(
            spectrum.converged
        )
        assert spectrum.spectrum is None and not spectrum.complete


def test_bounds_of_an_unfinished_result_hold_all_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    objective = lh.Objective(model, [(x.double(), y) for x, y in PAIRS], CE)
    exact = torch.linalg.eigvalsh(lh.Hessian(objective).to_dense()).numpy()
    for passes in (2, 4, 6):
        full = lh.analyze(objective, tol=1e-9, max_passes=passes).full
        assert full is not None and not full.converged.any()
        assert (np.abs(exact[:, None] - full.eigenvalues).min(axis=0) <= full.error_bounds).all()


def test_numbers_of_numpy_are_welcome() -> None:
    result = lh.analyze(
        lh.Objective(mlp(), PAIRS, CE, batch_size=np.int64(5)),
        top=np.int64(2), bottom=np.uint8(1), tol=np.float32(1e-2), seed=np.int32(3), max_passes=np.int64(40),
        time_limit=np.float64(100.0),
    )  # fmt: skip
    assert result.converged and all(
        type(value) in (int, float, str, bool, type(None)) for value in result.settings.values()
    )
