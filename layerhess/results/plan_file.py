"""Saves a plan to a folder, as plan.json, table.csv and report.html, and loads it.

``plan.json`` holds every number of the record, by the rules of :mod:`layerhess.results.json_format`, and above them a
summary by layer, for programs that want no more; that is not read back. Options stand by their names, what they are
under ``defined_options``. A function of the user's is kept by its name only. ``schema`` is the version of this layout.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerhess.errors import InputError
from layerhess.results import atomic_folder, json_format, result_folder
from layerhess.results.options import Function
from layerhess.results.plan import MeasuredPlan, PlanRecord, PlanRow
from layerhess.results.result_folder import PLAN, REPORT

NUMBERS, TABLE = "plan.json", "table.csv"
SCHEMA = 1
INSIDE = "plan"  # the folder of a plan that belongs to an analysis, in that analysis's folder


class PlanSaveError(InputError):
    """A plan could not be written; it is still available as the attribute ``plan``."""

    plan: PlanRecord


def save(plan: PlanRecord, path: str | Path, page: Callable[[PlanRecord], str]) -> Path:
    """Write a plan into the folder ``path``, atomically as a whole; a plan already there is replaced.

    Args:
        plan: what to write. path: the folder; missing parents are made. page: makes report.html.

    Returns:
        The folder's absolute path.

    Raises:
        PlanSaveError: an InputError; the folder cannot be written, or is something else than a plan's. What was there
            is untouched.
    """
    try:
        folder = result_folder.usable(path, PLAN)
        try:
            with atomic_folder.replacing(folder, PLAN.files) as staging:
                atomic_folder.write(staging / NUMBERS, json_text_of(plan).encode("ascii"))
                atomic_folder.write(staging / TABLE, table(plan).encode("utf-8"))
                atomic_folder.write(staging / REPORT, page(plan).encode("utf-8"))
        except OSError as error:
            raise result_folder.cannot_write(folder, error, PLAN) from error
    except InputError as refusal:
        lost = PlanSaveError(refusal.message, where=refusal.where, what_to_do=refusal.what_to_do)
        lost.plan = plan
        raise lost from refusal
    return folder


def load(path: str | Path) -> PlanRecord:
    """Read a plan that :func:`save` wrote; after a crash while it was being replaced, the complete one.

    Functions of the user's come back without what they do; ``lh.apply_plan`` says so.

    Args:
        path: the folder, or plan.json in it.

    Returns:
        The plan, every float64 as it was saved.

    Raises:
        InputError: no plan there, a damaged file, or a schema of a newer version.
    """
    folder = result_folder.absolute(path)
    found = result_folder.present(folder.parent if folder.name == NUMBERS else folder, PLAN)
    try:
        content = (found / NUMBERS).read_bytes()
    except OSError as error:
        raise result_folder.cannot_read(found, error, PLAN) from error
    with result_folder.damage(found, NUMBERS, PLAN):
        document = json_format.loads(content)
        json_format.check_schema(document, PLAN.format, SCHEMA)
        plan = json_format.of_document(PlanRecord, document)
        _refuse_inconsistent(plan)
    return plan


def replace_report(path: str | Path, page: str) -> Path:
    """Put another report.html into the folder of a plan: see :func:`result_folder.replace_report`."""
    return result_folder.replace_report(path, page, PLAN)


def is_plan(path: str | Path) -> bool:
    """Whether a folder holds a plan, damaged or not, and no analysis."""
    folder = result_folder.absolute(path)
    there = any((place / NUMBERS).is_file() for place in (folder, atomic_folder.old_name(folder)))
    return there and not (folder / result_folder.ANALYSIS.numbers).exists()


def json_text_of(plan: PlanRecord) -> str:
    """The content of plan.json: strict ASCII JSON with a final newline."""
    document = json_format.document(plan, PLAN.format)
    head = {"format": PLAN.format, "schema": SCHEMA, "layers": _layers(plan)}
    return json_format.dumps(head | {key: value for key, value in document.items() if key not in head})


def table(plan: PlanRecord) -> str:
    """The content of table.csv: a row for each (layer, option), floats with all digits, unknown ones empty.

    Columns are the fields of :class:`layerhess.results.plan.PlanRow`, and whether the option is chosen.
    """
    stream = io.StringIO()
    columns = list(PlanRow.__dataclass_fields__)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, "chosen"])
    for row in plan.rows:
        chosen = plan.choice.get(row.layer) == row.option
        writer.writerow([_cell(getattr(row, name)) for name in columns] + [_cell(chosen)])
    return stream.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _layers(plan: PlanRecord) -> dict[str, Any]:
    """Per layer what is chosen, and what that costs alone: measured, and predicted by curvature."""
    rows = {(row.layer, row.option): row for row in plan.rows}
    found = {}
    for name, option in plan.choice.items():
        row = rows.get((name, option))
        numbers = (
            {}
            if row is None
            else {
                "bits": row.bits,
                "size_bytes": row.size_bytes,
                "measured": row.measured,
                "measured_error": row.measured_error,
                "predicted": row.predicted_curvature,
            }
        )
        plain = {key: json_format.plain_float(value) for key, value in numbers.items()}
        found[name] = {"option": option.name, **plain, "function": isinstance(option, Function)}
    return found


def _refuse_inconsistent(plan: PlanRecord) -> None:
    """What a record made by us cannot have.

    Raises:
        ValueError: it has it.
    """
    names = {weight.name for weight in plan.weights}
    measured: list[tuple[str, MeasuredPlan]] = [
        *((f"candidates.{key}", one) for key, one in plan.candidates.items()),
        *((f"baselines.{key}", one) for key, one in plan.baselines.items()),
        *((f"frontier[{index}]", one) for index, one in enumerate(plan.frontier)),
        *((f"random[{index}]", one) for index, one in enumerate(plan.random)),
    ]
    for where, choice in [("", plan.choice), *((f"{place}.", one.choice) for place, one in measured)]:
        if set(choice) - names:
            raise ValueError(f"{where}choice has weights that are not listed: {sorted(set(choice) - names)[:3]}")
    if names - set(plan.choice):
        raise ValueError(f"choice lacks {sorted(names - set(plan.choice))[:3]}")
    for index, row in enumerate(plan.rows):
        if row.layer not in names:
            raise ValueError(f"rows[{index}].layer is {row.layer!r}, which is not listed")
    size = len(plan.weights)
    if plan.interactions.shape not in ((size, size), (0,)):
        raise ValueError(f"interactions is {plan.interactions.shape} for {size} weights")
