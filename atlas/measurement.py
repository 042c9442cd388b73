"""What layerhess finds of one subject: its analyses as folders with reports, and their figures as one JSON file."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import layerhess as lh
from layerhess.results.derived import Figure, derive

from .catalogue import made
from .fingerprint import fingerprint, versions
from .subject import Subject
from .untouched import changes, state

RESULTS = Path(__file__).parent / "results"
EVERY, EXAMINED = "every-block", "examined"  # folders of the two analyses
FIGURES = "figures.json"
FULL = "(full)"


def measure(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Analyse a subject, write both analyses and the figures, and return the figures.

    The first analysis has the largest eigenvalue of every block; the second both ends, the trace and the density of the
    five examined blocks and of the full model.
    """
    subject = made(name)
    folder = (folder or RESULTS) / name
    before, memory = state(subject.model), subject.memory
    objective = lh.Objective(subject.model, subject.batches, subject.criterion or lh.batch_loss(subject.total))
    began, busy = time.perf_counter(), time.process_time()
    every = lh.analyze(objective, blocks=subject.blocks, full=False, memory=memory)
    members = subject.members()
    chosen: Any = {block: list(members[block]) for block in subject.examined}
    density = lh.Density(probes=4, steps=15)
    examined = lh.analyze(objective, blocks=chosen, bottom=1, trace=lh.Trace(rel=0.05), density=density, memory=memory)
    found = {
        "fingerprint": fingerprint(subject),
        "versions": versions(subject) | {"layerhess": lh.__version__},
        "changed": changes(before, state(subject.model)),
        "seconds": round(time.perf_counter() - began, 1),
        "processor seconds": round(time.process_time() - busy, 1),
        "threads": torch.get_num_threads(),
        "gradients": [None if one.cost is None else round(one.cost.total, 1) for one in (every, examined)],
        "loss": every.loss,
        "parameters": sum(p.numel() for p in objective.parameters.values()),
        "blocks": subject.blocks,
        "modules": _modules(every, examined, subject),
        "examined": {block: _ends(spectrum) for block, spectrum in _spectra(examined).items()},
    }
    # Saved at the end: with out= the journal of every pass lies beside the folder, 6 GB for CREPE's 22 million weights.
    every.save(folder / EVERY)
    examined.save(folder / EXAMINED)
    (folder / FIGURES).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def load(name: str) -> dict[str, Any] | None:
    """The figures on disk; None where there are none."""
    path = RESULTS / name / FIGURES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _spectra(analysis: lh.Analysis) -> dict[str, Any]:
    return {**analysis.blocks, FULL: analysis.full}


def _modules(every: lh.Analysis, examined: lh.Analysis, subject: Subject) -> dict[str, Any]:
    """Each block's largest eigenvalue, and its share of the full model's top direction."""
    full = examined.full
    assert full is not None
    vector, off = full.eigenvectors[0], direction_error(full)
    kinds = {name: type(module).__name__ for name, module in subject.model.named_modules()}
    told = {}
    for name, spectrum in every.blocks.items():
        share = sum(float(vector[p].double().square().sum()) for p in spectrum.parameters)
        told[name] = {
            "kind": kinds.get(name) or kinds[name.rpartition(".")[0]],
            "numel": spectrum.numel,
            "top": [float(spectrum.eigenvalues[0]), float(spectrum.error_bounds[0])],
            "at most": spectrum.highest,
            "status": spectrum.status,
            "share": [share, off],
        }
    return told


def direction_error(spectrum: Any) -> float:
    """How far shares of the first eigenvector's square can be off: the sine of its angle to the true one.

    |tr P (v v' - u u')| <= sin(v, u) for any projector P, and sin(v, u) <= bound / gap (Davis & Kahan 1970). The gap is
    what the quadratic bound r^2 / gap was made with, so that it holds if no eigenvalue was missed. NaN where none is
    known.
    """
    bound, conditional, rounding = spectrum.error_bounds[0], spectrum.conditional_bounds[0], spectrum.rounding
    residual, quadratic = bound - rounding, conditional - rounding
    if spectrum.spectrum is not None and len(spectrum.spectrum) > 1:
        return float(min(1.0, bound / (spectrum.spectrum[0] - spectrum.spectrum[1])))
    if not (math.isfinite(quadratic) and quadratic > 0.0 and residual > 0.0):
        return math.nan
    return float(min(1.0, bound * quadratic / residual**2))


def _ends(spectrum: Any) -> dict[str, Any]:
    derived = derive(spectrum)
    return {
        "numel": spectrum.numel,
        "status": spectrum.status,
        "top": list(map(float, spectrum.top)),
        "bottom": list(map(float, spectrum.bottom)),
        "mean curvature": _figure(derived.mean_curvature),
        "effective rank": _figure(derived.effective_rank),
        "trace": _figure(derived.trace),
    }


def _figure(figure: Figure) -> list[Any]:
    return [figure.value, figure.error, figure.kind]
