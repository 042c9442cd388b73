"""Judges analyses of random networks against dense float64 truths: what is wrong, in words, and how much was looked at.

``python tests/random_judgement.py 0 300`` judges the seeds from 0 to 299, prints one JSON line a fault and the counts;
``python tests/random_judgement.py 17`` shows one seed in full.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

import layerhess as lh
from random_networks import Drawn, draw
from references.small_networks import Exact, Matrix
from witness import record

VISIBLE = 1e-3  # a derivative that is off by more must be refused
UNSURE = 1e-3  # a truth that disagrees with its own differences by more is not used
LONGEST = 400
FAR = 6.0  # standard errors
SQUARED = 1e150  # numbers up to it have a square in float64
EXCLUDED = 0.05  # times max(|theta|, 0.1 ||A||): what "converged" leaves open
Fault = dict[str, Any]
Rows = Any


class Judgement:
    """The faults of one network, and what was judged."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.faults, self.counts = drawn, [], Counter[str]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._judge()

    def fault(self, kind: str, ratio: float = 1.0, **facts: Any) -> None:
        """One of a kind for each network: the worst, with the number of the others."""
        made = {"kind": kind, "seed": self.drawn.seed, "number": 1, "ratio": ratio, **facts}
        for i, other in enumerate(self.faults):
            if other["kind"] == kind:
                made["number"] = other["number"] + 1
                worse = made if ratio > other["ratio"] else {**other, "number": made["number"]}
                self.faults[i] = {**worse, "network": self.drawn.words}
                return
        self.faults.append({**made, "network": self.drawn.words})

    def _judge(self) -> None:
        drawn = self.drawn
        self.counts["networks"] += 1
        exact = Exact(drawn.model, drawn.batches, drawn.loss.totals, drawn.loss.count)
        if drawn.question["operator"] != "gauss_newton" and drawn.loss.before_head is not None:
            exact.model.out, exact.totals = torch.nn.Identity(), drawn.loss.before_head
        hessian = exact.hessian()
        finite = bool(np.isfinite(hessian).all()) and _finite(drawn) and _fits(drawn, exact)
        before = record(drawn.model)
        started = time.perf_counter()
        analysis, refusal = self._attempt()
        self.counts["milliseconds"] += int(1000 * (time.perf_counter() - started))
        after = record(drawn.model)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            self.fault("touched", what=str(changed[:3]))
        if refusal is not None:
            self._judge_refusal(refusal, finite, exact)
        if analysis is None:
            return
        names = [n for n in exact.parameters if any(n in spectrum.parameters for spectrum in analysis.spectra())]
        judged = finite and not drawn.constant  # constants by request move in differences
        first = exact.first_derivative_error(names) if judged else 0.0
        # Of what was asked for: blocks alone may be right where their couplings are not.
        whole = analysis.full is not None or analysis.coupling is not None
        parts = [names] if whole else [list(spectrum.parameters) for spectrum in analysis.spectra()]
        error = exact.second_derivative_error if judged else exact.asymmetry
        second = max((error(part) for part in parts if part), default=0.0) if finite else 0.0
        needed = drawn.question["operator"] == "hessian"
        if drawn.wrong and (first > VISIBLE or (needed and second > VISIBLE)):
            self.fault("wrong accepted", first=first, second=second)
        elif not finite:
            self.counts["not finite, answered"] += 1
        elif drawn.loss.words and _saturated(drawn):
            self.counts["saturated, answered"] += 1
        elif first <= UNSURE and needed and second > UNSURE and exact.bend(names) > UNSURE:
            self.counts["at a kink, answered"] += 1  # there is no second derivative
        elif max(first, second if needed else 0.0) > UNSURE:
            self.counts["truth unsure"] += 1
            self.fault("truth unsure", first=first, second=second)
        else:
            self.counts["judged"] += 1
            operator = drawn.question["operator"]
            noise = np.abs(hessian - hessian.T)
            self._judge_numbers(analysis, exact, exact.matrix(operator), noise)

    def _attempt(self) -> tuple[lh.Analysis | None, Exception | None]:
        try:
            return lh.analyze(self.drawn.objective(), **self.drawn.question), None
        except Exception as error:
            return None, error

    def _judge_refusal(self, error: Exception, finite: bool, exact: Exact) -> None:
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, (lh.InputError, lh.CheckError)):
            self.fault("bare", said=said[:500])
            return
        if len(str(error)) > LONGEST:
            self.fault("long message", said=said)
        if self.drawn.wrong and not self.drawn.constant:
            self.counts["refused, faulty"] += 1
        elif not finite:
            self.counts["refused, not finite"] += 1
        elif self.drawn.loss.words and _saturated(self.drawn):
            self.counts["refused, saturated"] += 1
            if not any(word.lower() in said.lower() for word in self.drawn.loss.words):
                self.fault("refused without the word", said=said)
        elif self.drawn.question.get("path") in ("factors", "gram"):
            self.counts["refused, path"] += 1
        elif self.drawn.question["operator"] != "empirical_fisher" and _flat(exact):
            self.counts["refused, saturated"] += 1
        else:
            self.fault("false alarm", said=said)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def _judge_numbers(self, analysis: lh.Analysis, exact: Exact, matrix: Matrix, noise: Matrix) -> None:
        loss = float(exact.loss())
        tolerance = 1e-4 if self.drawn.dtype == torch.float32 else 1e-10
        said = [
            float(figure) for note in analysis.notes for figure in re.findall(r"the loss is good to (\S+) only", note)
        ]
        if abs(analysis.loss - loss) > max(tolerance * max(abs(loss), 1e-30), *said, 0.0):
            self.fault("loss", found=analysis.loss, true=loss)
        places, whole = {}, float(np.linalg.norm(matrix, 2))
        for spectrum in analysis.spectra():
            rows = exact.index(spectrum.parameters)
            A, error = matrix[np.ix_(rows, rows)], noise[np.ix_(rows, rows)]
            places[spectrum.name] = rows
            if spectrum.status.startswith("refused"):
                if self.drawn.question.get("path") not in ("factors", "gram"):
                    self.fault("false alarm", block=spectrum.name, said=spectrum.status)
                continue
            norm = float(np.linalg.norm(A, 2))
            slack = 3 * float(np.linalg.norm(error)) + 4 * len(A) * np.finfo(float).eps * norm + 1e-17 * whole
            self._judge_eigenvalues(spectrum, A, norm, slack)
            self._judge_estimates(spectrum, A, slack, exact)
        if analysis.coupling is not None:
            self._judge_coupling(analysis.coupling, places, matrix, noise)

    def _judge_eigenvalues(self, spectrum: lh.Spectrum, A: Matrix, norm: float, slack: float) -> None:
        true = np.linalg.eigvalsh(A)[::-1]
        found, bounds = spectrum.eigenvalues, spectrum.error_bounds
        tops = len(true) if len(found) == len(true) else sum(end == "top" for end in spectrum.end)
        wanted = [*true[:tops], *true[len(true) - (len(found) - tops) :]]
        if spectrum.spectrum is not None:
            reach = float(np.max(bounds, initial=spectrum.rounding))
            worst = int(np.argmax(np.abs(spectrum.spectrum - true)))
            off = abs(float(spectrum.spectrum[worst] - true[worst]))
            if off > reach + slack:
                ratio = off / max(reach + slack, 1e-300)
                facts = {"block": spectrum.name, "off": off, "bound": reach, "norm": norm, "status": spectrum.status}
                self.fault("spectrum", ratio, **facts)
        for i, (value, bound) in enumerate(zip(found.tolist(), bounds.tolist(), strict=True)):
            facts = {
                "block": spectrum.name, "numel": spectrum.numel, "value": value, "bound": bound,
                "true": float(wanted[i]), "norm": norm, "status": spectrum.status, "path": spectrum.path,
            }  # fmt: skip
            self.counts["eigenvalues"] += 1
            self.counts["converged"] += bool(spectrum.converged[i])
            nearest = float(np.abs(true - value).min())
            if not nearest <= bound + slack:
                self.fault("outside", nearest / max(bound + slack, 1e-300), nearest=nearest, **facts)
                continue
            if spectrum.converged[i] and not bound <= 0.05 * max(abs(value), 0.1 * norm) and norm > 0:
                if spectrum.status.startswith("zero"):
                    self.counts["zero blocks' pairs"] += 1
                else:
                    self.fault("says nothing", bound / max(abs(value), 0.1 * norm), **facts)
            low, high = map(float, spectrum.interval[i])
            if not low - slack <= wanted[i] <= high + slack:
                self.fault("missed", low=low, high=high, p=spectrum.missed_probability, **facts)
            self.counts["not the wanted one"] += bool(abs(value - wanted[i]) > bound + slack)
            reach = max(high - value, value - low)
            allowed = bound + 1.01 * EXCLUDED * max(abs(value), 0.1 * norm) + slack
            if spectrum.converged[i] and not reach <= allowed and self._excludes(spectrum):
                self.fault("converged and open", reach / allowed, low=low, high=high, **facts)

    def _excludes(self, spectrum: lh.Spectrum) -> bool:
        """Whether "converged" also says that nothing further is left open."""
        return self.drawn.question.get("exclude", True) is not None and "dtype" not in spectrum.status

    def _judge_estimates(self, spectrum: lh.Spectrum, A: Matrix, slack: float, exact: Exact) -> None:
        n = len(A)
        if (trace := spectrum.trace) is not None:
            self._compare("trace", spectrum.name, trace.value, np.trace(A), trace.standard_error, trace.rounding,
                          slack * np.sqrt(n), trace.method)  # fmt: skip
        if (diagonal := spectrum.diagonal) is not None:
            value = np.concatenate([diagonal.value[name].numpy().ravel() for name in spectrum.parameters])
            errors = np.concatenate([diagonal.standard_error[name].numpy().ravel() for name in spectrum.parameters])
            self._compare("diagonal", spectrum.name, value, np.diag(A), errors, diagonal.rounding, slack,
                          diagonal.method)  # fmt: skip
        if (density := spectrum.density) is not None:
            how = "exact" if density.probes == 0 else f"{density.probes} probes"
            reach = float(np.max(spectrum.error_bounds, initial=spectrum.rounding))
            twice = 2 * float(np.linalg.norm(A, 2))
            first, second = np.trace(A) / n, np.sum(A * A) / n
            self._compare("density mean", spectrum.name, density.mean, first, density.mean_error, reach, slack, how)
            self._compare("density second", spectrum.name, density.second, second, density.second_error, twice * reach,
                          twice * slack, how)  # fmt: skip

    def _judge_coupling(self, coupling: Any, places: dict[str, Rows], matrix: Matrix, noise: Matrix) -> None:
        names = coupling.blocks
        for i, a in enumerate(names):
            for j, b in enumerate(names[: i + 1]):
                if a not in places or b not in places:
                    continue
                part = matrix[np.ix_(places[a], places[b])]
                slack = float(np.linalg.norm(noise[np.ix_(places[a], places[b])])) + 1e-15 * np.linalg.norm(matrix)
                self._compare("coupling", f"{a} x {b}", coupling.value[i, j], np.linalg.norm(part),
                              coupling.standard_error[i, j], 0.0, slack, f"{coupling.probes} probes")  # fmt: skip

    def _compare(
        self, kind: str, block: str, value: Any, true: Any, error: Any, rounding: float, slack: float, how: str
    ) -> None:
        """Within six standard errors and rounding; exact values, whose error is 0, within rounding alone."""
        value, true, error = (np.atleast_1d(np.asarray(x, dtype=float)) for x in (value, true, error))
        self.counts[kind] += len(value)
        reach = np.where(np.isnan(error), np.inf, FAR * error) + rounding + slack
        off = np.abs(value - true)
        worst = int(np.argmax(off - reach))
        if not off[worst] <= reach[worst]:
            self.fault(
                f"{kind}, {'exact' if error[worst] == 0 else 'estimated'}", off[worst] / max(reach[worst], 1e-300),
                block=block, entries=int((off > reach).sum()), value=value[worst], true=true[worst],
                error=error[worst], rounding=rounding, slack=float(slack), how=how,
            )  # fmt: skip


def _finite(drawn: Drawn) -> bool:
    """The written-out loss and its derivatives, and torch's own loss and gradient, are finite in the own dtype."""
    if not Exact(drawn.model, drawn.batches, drawn.loss.totals, drawn.loss.count, drawn.dtype).finite():
        return False
    twin = copy.deepcopy(drawn.model)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    loss = drawn.loss.made(drawn.dtype, twin.head.out_features)
    value = loss if isinstance(loss, torch.nn.Module) else lambda z, y: drawn.loss.totals(z, y)[0]
    total = sum(value(twin(x), y) for x, y in drawn.batches)
    if not torch.isfinite(total) or not total.requires_grad:
        return bool(torch.isfinite(total))
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    return all(bool(torch.isfinite(g).all()) for g in slopes if g is not None)


def _fits(drawn: Drawn, exact: Exact) -> bool:
    """Numbers whose squares are numbers, and those of gradients in the own dtype."""
    if not float(np.abs(exact.matrix(drawn.question["operator"])).max()) < SQUARED:
        return False
    if drawn.question["operator"] != "empirical_fisher":
        return True
    return float(np.abs(exact.empirical_fisher()).max()) < 1e-3 * torch.finfo(drawn.dtype).max


def _flat(exact: Exact) -> bool:
    """All outputs saturate; what is left of the second derivative is what a softmax loses by cancelling."""
    return max(float(np.abs(S).max()) for S in exact.output_curvatures()) < 1e-14


@torch.no_grad()
def _saturated(drawn: Drawn) -> bool:
    """Probabilities so near to 0 or 1 that torch's BCELoss no longer differentiates itself, or its log is clamped."""
    twin = copy.deepcopy(drawn.model)
    return any(bool((p * (1 - p) < 1e-10).any()) for p in (twin(x) for x, _ in drawn.batches))


def judge(seeds: Iterator[int] | range) -> tuple[list[Fault], Counter[str]]:
    faults, counts = [], Counter[str]()
    for seed in seeds:
        judgement = Judgement(draw(seed))
        faults += judgement.faults
        counts += judgement.counts
        counts.update(f"fault: {fault['kind']}" for fault in judgement.faults)
        for fault in judgement.faults:
            print(json.dumps(fault, default=str), flush=True)
    return faults, counts


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    first = int(arguments[0])
    last = int(arguments[1]) if len(arguments) > 1 else first + 1
    _, counts = judge(range(first, last))
    print(json.dumps({"from": first, "to": last, **dict(sorted(counts.items()))}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
