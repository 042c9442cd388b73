"""docs/atlas.md and atlas.csv as text, from the figures alone."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from layerhess.linalg.numbers import count, number, with_bound

from .measurement import EVERY, EXAMINED
from .sentences import sentences

FULL = "(full)"
REPORTS = "atlas"  # a folder beside the page
HEAD = """\
# Atlas: the curvature of published models

Six questions on five sets of weights that nobody here trained: each block's largest Hessian eigenvalue, with its bound,
and what the full model's Hessian is like. `make atlas` writes this page from what `make test-real` measured; every top
value of ten blocks and of the full model of each was held against SciPy's `eigsh` in float64, on products in which
layerhess has no part (`make truths-real`). The numbers are in [atlas.json](atlas.json) and [atlas.csv](atlas.csv).

- **H** is the Hessian of the mean loss on the data named below, a few examples: the numbers are exact for those, and
  other data has others.
- **± after an eigenvalue** is its error bound, rounding included. ± after a trace or an effective rank is one standard
  error over the random vectors; an effective rank has four, so its error is rough, and can be as large as to say
  nothing is known.
- **Share** is that of the full model's top eigenvector: the sum of its squared entries in a block. ± is the sine of the
  angle by which that direction can be off, if no eigenvalue was missed (see [Concepts](explanation/concepts.md)).
- **Effective rank** is exp of the entropy of |eigenvalues| (Roy & Vetterli 2007).
"""


def text(atlas: dict[str, Any]) -> str:
    """The whole page."""
    subjects = atlas["subjects"]
    parts = [HEAD, "## The models", _models(subjects), "## What they have in common, and where they differ"]
    parts.append("\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences(subjects), 1)))
    parts.append("## Spectra by depth")
    parts.append(
        "![Largest eigenvalue of every block by depth, and the share of the full model's top direction in each]"
        "(images/atlas.svg)"
    )
    parts.append(
        "Above: the largest eigenvalue of every block in the model's order, dots for weights and crosses for "
        "normalisations; the dashed line is the full model's. Below: the block's share of the full model's top "
        "direction. Blocks whose largest eigenvalue is not positive are left out above."
    )
    for name, found in subjects.items():
        parts += [f"## {found['title']}", _about(name, found), _examined(found), _modules(found)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def report(name: str, kind: str) -> str:
    """Path of a report from the page."""
    return f"{REPORTS}/{name}-{kind}.html"


def table(atlas: dict[str, Any]) -> str:
    """The CSV: a row for each block of each subject, and one for its full model."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([
        "model", "block", "kind", "parameters", "top", "top_bound", "share", "share_error", "bottom", "bottom_bound",
        "trace_per_parameter", "trace_per_parameter_error", "effective_rank", "effective_rank_error", "status",
    ])  # fmt: skip
    for name, found in atlas["subjects"].items():
        for block, module in {**found["modules"], FULL: found["examined"][FULL]}.items():
            ends = found["examined"].get(block, {})
            pairs = [
                module["top"], module.get("share", ["", ""]), ends.get("bottom", ["", ""]),
                ends.get("mean curvature", ["", ""])[:2], ends.get("effective rank", ["", ""])[:2],
            ]  # fmt: skip
            plain = [figure for pair in pairs for figure in pair]
            kind = module.get("kind", "full model")
            writer.writerow([name, block, kind, module["numel"], *plain, module["status"].split(":")[0]])
    return stream.getvalue()


def _models(subjects: dict[str, Any]) -> str:
    lines = _header("model", "parameters", "blocks", "loss", "largest eigenvalue", "smallest", "trace / parameter",
                    "effective rank")  # fmt: skip
    for found in subjects.values():
        full = found["examined"][FULL]
        lines.append(_row(found["title"], count(found["parameters"]), len(found["modules"]), number(found["loss"]),
                          *_ends(full)))  # fmt: skip
    return "\n".join(lines)


def _about(name: str, found: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number_}" for package, number_ in found["versions"].items())
    blocks = "one for each parameter tensor" if found["blocks"] == "parameter" else "one for each module"
    seconds = found.get("processor seconds", 0.0)
    return (
        f"Data: {found['data']}. Loss: {found['loss in words']}. Blocks: {blocks}. Versions: {versions}. Both analyses "
        f"took {seconds:.0f} s of a processor. Reports: [every block]({report(name, EVERY)}), "
        f"[the full model and five blocks]({report(name, EXAMINED)})."
    )


def _examined(found: dict[str, Any]) -> str:
    lines = _header("block", "parameters", "largest eigenvalue", "smallest", "trace / parameter", "effective rank")
    for block, ends in found["examined"].items():
        lines.append(_row("full model" if block == FULL else f"`{block}`", count(ends["numel"]), *_ends(ends)))
    return "\n".join(lines)


def _ends(ends: dict[str, Any]) -> list[str]:
    return [with_bound(*ends[key][:2]) for key in ("top", "bottom", "mean curvature", "effective rank")]


def _modules(found: dict[str, Any]) -> str:
    lines = _header("block", "kind", "parameters", "largest eigenvalue", "share of the top direction, %")
    for block, module in found["modules"].items():
        value = "0 (no dependence)" if module["top"] == [0.0, 0.0] else with_bound(*module["top"])
        share, off = module["share"]
        told = f"{number(100 * share, 3)} ± unknown" if math.isnan(off) else with_bound(100 * share, 100 * off)
        lines.append(_row(f"`{block}`", module["kind"], count(module["numel"]), value, told))
    return "\n".join(lines)


def _header(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
