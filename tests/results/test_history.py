"""The history of a training: as a table and as a file, which comes back as it was or is refused in words."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

import layerhess as lh
from layerhess.monitor.loggers import TABLE, Table, log_of
from layerhess.results.history import NAME, History, load_history
from layerhess.results.point import COLUMNS, OPTIMIZER_COLUMNS, Point, Reading


def made(optimizer: bool = True) -> History:
    history = History({"every": 20, "blocks": "weight"}, notes=['a "note" of <b>'], share=0.04, optimizer=optimizer)
    for step in (20, 40):
        own = (3.5 + step, 0.1, 38.0, (3.5 + step) / 38.0) if optimizer else ()
        readings = [
            Reading("0.weight", -1.25, 0.125, math.nan, 4, 1),
            Reading("(full)", 1e-7, 0.1, math.inf, 8, 1, *own),
        ]
        history.points.append(Point(step, {r.block: r for r in readings}, 0.25, step == 20))
    return history


def test_the_table_has_a_row_per_point_and_block() -> None:
    frame = made(optimizer=False).to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert frame["step"].tolist() == [20, 20, 40, 40]
    assert frame["block"].tolist() == ["0.weight", "(full)"] * 2
    assert frame["products"].dtype == frame["gradients"].dtype == "int64"
    assert frame["lambda_max"].tolist() == [-1.25, 1e-7] * 2


def test_with_an_optimizer_its_figures_are_on_the_rows_of_the_whole_model_only() -> None:
    frame = made().to_frame()
    assert tuple(frame.columns) == COLUMNS + OPTIMIZER_COLUMNS
    own = frame[frame.block == "(full)"]
    assert own.ratio.tolist() == pytest.approx((own.preconditioned / own.threshold).tolist())
    assert frame[frame.block != "(full)"][list(OPTIMIZER_COLUMNS)].isna().all(axis=None)


def test_an_empty_history_has_an_empty_table_with_its_columns() -> None:
    frame = History().to_frame()
    assert len(frame) == 0 and tuple(frame.columns) == COLUMNS


@pytest.mark.parametrize("optimizer", [False, True])
def test_a_history_comes_back_as_it_was_written(tmp_path: Path, optimizer: bool) -> None:
    history = made(optimizer)
    history.save(tmp_path)
    again = load_history(tmp_path)
    assert repr(again) == repr(history)  # NaN is not equal to itself
    assert [p.readings["(full)"].lambda_max for p in again.points] == [1e-7, 1e-7]
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]
    assert (tmp_path / NAME).read_bytes().isascii()


def test_an_empty_history_comes_back(tmp_path: Path) -> None:
    History().save(tmp_path)
    assert lh.load_history(tmp_path).points == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: text.replace("layerhess monitor", "other"), "not marked"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema is 2"),
        (lambda text: text.replace('"lambda_max"', '"other"'), "columns are others"),
        (lambda text: text.replace('"step": 20', '"step": "20"'), "'20' is not an integer"),
        (lambda text: text.replace("-1.25", "true"), "True is not a number"),
        (lambda text: text.replace("-1.25", "NaN"), "NaN is not valid JSON"),
        (lambda text: text.replace('"notes"', '"words"'), "damaged"),
        (lambda text: "[]", "not marked"),
    ],
)
def test_a_damaged_history_is_refused_in_words(tmp_path: Path, damage, words: str) -> None:
    made().save(tmp_path)
    path = tmp_path / NAME
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(lh.InputError, match=words) as caught:
        load_history(tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_without_a_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lh.InputError, match="cannot be read"):
        load_history(tmp_path / "nothing")


def test_a_failed_write_leaves_the_last_history_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        made(False).save(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_csv_file_grows_by_a_row_per_block(tmp_path: Path) -> None:
    history = made()
    table = Table(tmp_path / TABLE, history.columns)
    for number, point in enumerate(history.points, 1):
        table.add(point)
        with (tmp_path / TABLE).open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 2 * number
    assert tuple(rows[0]) == history.columns
    assert float(rows[-1]["preconditioned"]) == 43.5 and float(rows[-1]["missed_factor"]) == math.inf


def test_every_kind_of_logger_gets_the_figures() -> None:
    heard: list[object] = []

    class Lightning:
        def log_metrics(self, metrics, step=None):
            heard.append((metrics, step))

    class Writer:
        def add_scalar(self, name, value, step):
            heard.append(({name: value}, step))

    class Run:
        def log(self, metrics, step=None):
            heard.append((metrics, step))

    for logger in (Lightning(), Writer(), Run(), lambda metrics, step: heard.append((metrics, step))):
        log_of(logger)({"curvature/a/bound": 1.0}, 7)
    assert heard == [({"curvature/a/bound": 1.0}, 7)] * 4
    with pytest.raises(lh.InputError, match="is no logger"):
        log_of(3)


def test_metrics_are_named_by_block_and_leave_out_what_is_not_known() -> None:
    point = made().points[0]
    names = set(point.metrics())
    assert {"curvature/0.weight/lambda_max", "curvature/0.weight/bound", "curvature/(full)/lambda_max"} <= names
    assert "curvature/(full)/ratio" in names and "curvature/0.weight/ratio" not in names


def test_the_file_is_strict_json_that_other_programs_read(tmp_path: Path) -> None:
    made().save(tmp_path)
    document = json.loads((tmp_path / NAME).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["points"][0]["rows"][0][:4] == ["0.weight", -1.25, 0.125, None]
    assert document["points"][1]["rows"][1][3] == "inf"
    assert document["columns"] == list(COLUMNS[1:] + OPTIMIZER_COLUMNS)
