"""All points of a monitor: as a table, and as a file in its results folder.

The folder of ``out=`` holds

- ``history.json``, replaced atomically: strict JSON, no other content than numbers and texts. Keys: ``format``
  ("layerhess monitor"), ``schema`` (1), ``settings`` (what was asked for, the model's name, the number of parameters),
  ``notes`` (sentences), ``share`` (own time over the training's), ``columns``, and ``points``: a list of objects with
  ``step``, ``seconds``, ``checked`` and ``rows``, a list per block with the values of ``columns`` in their order. NaN
  is null; an infinite number is "inf" or "-inf".
- ``curvature.csv``, the same rows, one after the other as they are made.
- ``report.html``, the curves; made by ``close()`` and by ``layerhess report``.
- event files for TensorBoard, where that is installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.numbers import counted, share, with_bound
from layerhess.results import atomic_folder, json_format
from layerhess.results.data_frame import data_frame
from layerhess.results.point import COLUMNS, OPTIMIZER_COLUMNS, WHOLE, Point, Reading
from layerhess.results.store import NUMBERS

if TYPE_CHECKING:
    import pandas as pd

NAME = "history.json"
FORMAT, SCHEMA = "layerhess monitor", 1
STOPPED = "the monitor stopped"  # begins the note on a failure


@dataclass(repr=False)
class History(Described):
    """The points of one training, in their order.

    Attributes:
        points: see :class:`layerhess.results.point.Point`. settings: as JSON types. notes: sentences that belong to the
            numbers. share: the monitor's own time over the training's. optimizer: whether rows have its columns.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    share: float = 0.0
    optimizer: bool = False

    def _describe(self) -> Description:
        model = called(self.settings.get("model", "a model"))
        facts = [f"{share(self.share)} of the training's time"] if self.points else []
        if self.points:
            rows = sorted(self.points[-1].readings.values(), key=lambda reading: -reading.lambda_max)
            shown = [f"{called(r.block, 30)} {with_bound(r.lambda_max, r.bound)}" for r in rows[:2]]
            facts.append(f"at step {self.points[-1].step}: {'; '.join(shown)}")
        facts.append(".points, .to_frame()")
        return Description(f"History of {model}, {counted(len(self.points), 'point')}", tuple(facts))

    @property
    def columns(self) -> tuple[str, ...]:
        """Of :meth:`to_frame`."""
        return COLUMNS + OPTIMIZER_COLUMNS if self.optimizer else COLUMNS

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of all rows, in model order."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.readings))

    def rows(self) -> Iterator[list[Any]]:
        """The rows of :meth:`to_frame`."""
        for point in self.points:
            yield from self._rows(point)

    def to_frame(self) -> pd.DataFrame:
        """A row per point and block, "(full)" the whole model; see :class:`layerhess.results.point.Reading`.

        Raises:
            InputError: pandas is not installed.
        """
        kinds = {name: "int64" if name in WHOLE else object if name == "block" else "float64" for name in self.columns}
        return data_frame(list(self.rows()), self.columns, "to_frame", "read the points directly").astype(kinds)

    def save(self, folder: Path) -> None:
        """Write ``history.json``, atomically.

        Raises:
            OSError: it cannot be written.
        """
        document = {
            "format": FORMAT,
            "schema": SCHEMA,
            "settings": self.settings,
            "notes": self.notes,
            "share": _plain(self.share),
            "columns": list(self.columns[1:]),
        }
        points = [
            json.dumps(
                {
                    "step": point.step,
                    "seconds": _plain(point.seconds),
                    "checked": point.checked,
                    "rows": [[_plain(value) for value in row[1:]] for row in self._rows(point)],
                },
                allow_nan=False,
            )
            for point in self.points
        ]
        head = json.dumps(document, indent=2, allow_nan=False)[:-2]
        listed = "[\n    " + ",\n    ".join(points) + "\n  ]" if points else "[]"
        atomic_folder.rewrite(folder / NAME, f'{head},\n  "points": {listed}\n}}\n'.encode("ascii"))

    def _rows(self, point: Point) -> Iterator[list[Any]]:
        for reading in point.readings.values():
            yield [point.step, *(getattr(reading, name) for name in self.columns[1:])]


def is_history(folder: str | Path) -> bool:
    """Whether a folder holds a monitor's history, and no analysis."""
    path = Path(folder).expanduser()
    return (path / NAME).is_file() and not (path / NUMBERS).exists()


def load_history(folder: str | Path) -> History:
    """Read the history that a monitor wrote into its results folder (``out=``).

    Raises:
        InputError: there is none, or it is damaged, or of a newer version.
    """
    path = Path(folder).expanduser() / NAME
    try:
        document = json.loads(path.read_bytes(), parse_constant=json_format.refuse_constant)
    except OSError as error:
        raise _unusable(path, f"it cannot be read ({error.strerror})", "give the folder of Monitor(out=)") from error
    except ValueError as error:
        raise _unusable(path, f"it is not JSON ({error})", "make it again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _unusable(path, f"it is not marked as a {FORMAT}", "give the folder of Monitor(out=)")
    if document.get("schema") != SCHEMA:
        raise _unusable(path, f"its schema is {document.get('schema')!r}, not {SCHEMA}", "update layerhess")
    try:
        return _decoded(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(path, f"it is damaged ({type(error).__name__}: {error})", "make it again") from error


def _decoded(document: dict[str, Any]) -> History:
    columns = tuple(str(name) for name in document["columns"])
    expected = COLUMNS[1:] + OPTIMIZER_COLUMNS
    if columns not in (COLUMNS[1:], expected):
        raise ValueError("its columns are others")
    history = History(
        settings=dict(document["settings"]),
        notes=[str(note) for note in document["notes"]],
        share=_number(document["share"]),
        optimizer=columns == expected,
    )
    for one in document["points"]:
        readings = {}
        for row in one["rows"]:
            named = dict(zip(columns, row, strict=True))
            values: dict[str, Any] = {
                name: str(value) if name == "block" else _integer(value) if name in WHOLE else _number(value)
                for name, value in named.items()
            }
            reading = Reading(**values)
            readings[reading.block] = reading
        history.points.append(Point(_integer(one["step"]), readings, _number(one["seconds"]), bool(one["checked"])))
    return history


def _plain(value: Any) -> Any:
    return json_format.plain_float(value) if isinstance(value, float) else value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not an integer")
    return value


def _unusable(path: Path, why: str, what_to_do: str) -> InputError:
    return InputError(f"the history of a monitor cannot be used: {why}", where=str(path), what_to_do=what_to_do)
