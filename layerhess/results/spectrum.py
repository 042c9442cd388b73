"""The results that users read: the spectrum of one operator, and the record of a whole analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.linalg.numbers import count, counted, number, with_reach
from layerhess.results.derived import Derived, derive
from layerhess.results.record import Check, Cost, Counts, SampledGroups, SpectrumRecord

FULL_NAME = "(full)"


@dataclass(frozen=True, repr=False)
class Spectrum(SpectrumRecord):
    """Eigenpairs and estimates of one operator; :class:`layerhess.results.record.SpectrumRecord` lists the fields."""

    @property
    def derived(self) -> Derived:
        """Numbers derived from these: effective rank, damping, 2/lambda_max and so on, with errors.

        See :class:`layerhess.results.derived.Derived`; a number whose inputs were not asked for is NaN.
        """
        return derive(self)


Spectrum.__doc__ = SpectrumRecord.__doc__  # help() says what each field holds


class Blocks(Described, dict[str, Spectrum]):
    """Block name -> :class:`Spectrum`, in model order."""

    def _describe(self) -> Description:
        return described_blocks(f"{counted(len(self), 'block')}", list(self.values()))


def described_blocks(title: str, spectra: list[Spectrum]) -> Description:
    """Several spectra: what is not done, the sharpest, and a row for each."""
    undone: dict[str, list[str]] = {}
    for s in spectra:
        if s.alarm:
            undone.setdefault(s.alarm, []).append(called(s.name, 30))
    sharpest = sorted((s for s in spectra if s.top is not None), key=lambda s: -(s.top or (0.0,))[0])
    facts = [f"{word}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" for word, names in undone.items()]
    if sharpest:
        ends = [
            f"{called(s.name, 30)} {with_reach(*s.top, s.highest)}{'' if s.settled('top') else ' (NOT CONVERGED)'}"
            for s in sharpest[:2]
            if s.top is not None
        ]
        known = "" if len(sharpest) == len(spectra) else f", of {len(sharpest)} of {len(spectra)} blocks"
        facts.append(f"largest eigenvalues{known}: {'; '.join(ends)}")
    facts.append("[name] gives one: " + ", ".join(repr(called(s.name, 30)) for s in spectra[:3]) if spectra else "none")
    return Description(
        title,
        tuple(facts),
        ", ".join(f"{len(names)} {word}" for word, names in undone.items()),
        ("block", "numel", "lambda_max", "lambda_min", "status"),
        tuple(
            (
                called(s.name),
                count(s.numel),
                "-" if s.top is None else with_reach(*s.top, s.highest),
                "-" if s.bottom is None else with_reach(*s.bottom, s.deepest),
                s.alarm or s.status.split(":")[0],
            )
            for s in spectra
        ),
    )


@dataclass(frozen=True, repr=False)
class AnalysisRecord(Described):
    """Everything one call of :func:`layerhess.analyze` found, as it is saved.

    Attributes:
        blocks: block name -> :class:`Spectrum`, in model order.
        full: the :class:`Spectrum` of the full Hessian, or None when it was not asked for.
        full_mass: for each full-model eigenvector, parameter block -> share of its squared norm (sums to 1 with
            "(not in any block)"), in the order of ``full.eigenvalues``.
        frozen: names of parameters left out because they are frozen (``requires_grad=False``) or not floating point.
        uncovered: names of trainable parameters that no block covers (the full Hessian has them).
        loss: the loss L(theta) over the whole data set; ``loss_count`` its denominator; ``examples`` the number of
            examples where it is known (first dimension summed over batches), else 0; ``batches`` their number.
        gradient_norm: ||grad L||, NaN if not measured.
        settings: the arguments of the call (JSON types only). checks: the self-checks. notes: plain sentences.
        counts: the work done. seconds: phase -> wall-clock seconds. versions: package -> version.
        partial: empty when the analysis ran to its end, otherwise why it stopped early.
        coupling: the :class:`layerhess.linalg.estimates.CouplingEstimate` of all pairs of blocks, where asked for.
        cost: the time in units of one gradient; None if it stopped before the first pass.
        groups: of examples, by which sampling errors were measured; None where they were not.
    """

    blocks: Mapping[str, Spectrum]
    full: Spectrum | None
    full_mass: list[dict[str, float]]
    frozen: tuple[str, ...]
    uncovered: tuple[str, ...]
    loss: float
    loss_count: float
    examples: int
    batches: int
    gradient_norm: float
    settings: dict[str, Any]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    counts: Counts
    seconds: dict[str, float]
    versions: dict[str, str]
    model: str = ""
    total_numel: int = 0
    created: str = ""
    partial: str = ""
    coupling: CouplingEstimate | None = None
    cost: Cost | None = None
    groups: SampledGroups | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Blocks):
            object.__setattr__(self, "blocks", Blocks(self.blocks))

    @property
    def converged(self) -> bool:
        """True when all that was asked for is done in every block and the full model, and nothing was refused."""
        return not self.partial and all(s.ok for s in self.spectra())

    def spectra(self) -> list[Spectrum]:
        """All blocks in model order, then the full model if there is one."""
        return [*self.blocks.values(), *([self.full] if self.full is not None else [])]

    def __getitem__(self, name: str) -> Spectrum:
        if name == FULL_NAME and self.full is not None:
            return self.full
        try:
            return self.blocks[name]
        except KeyError:
            raise InputError(
                f"there is no block named {name!r}",
                where="analysis[...]",
                what_to_do="choose one of: " + ", ".join(list(self.blocks)[:8]),
            ) from None

    def _describe(self) -> Description:
        spectra = self.spectra()
        of = described_blocks("", [s for s in spectra if s is not self.full])
        alarms = ["STOPPED EARLY"] if self.partial else []
        refused = sum(s.alarm.startswith("REFUSED") for s in spectra)
        undone = sum(bool(s.alarm) for s in spectra) - refused
        for number_of, words in ((undone, "NOT CONVERGED"), (refused, "REFUSED")):
            alarms += [f"{number_of} of {len(spectra)} spectra {words}"] if number_of else []
        facts = [f"stopped early: {self.partial}"] if self.partial else []
        facts += [f"loss {number(self.loss, 6)} over {counted(self.batches, 'batch', 'batches')}"]
        if self.full is not None and self.full.top is not None:
            words = f" ({self.full.alarm})" if self.full.alarm else ""
            facts.append(f"full model: largest eigenvalue {with_reach(*self.full.top, self.full.highest)}{words}")
        facts += [f for f in of.facts if f.startswith("largest")]
        facts.append("print() shows the table; .blocks, .full, .to_frame(), .plot, .save()")
        title = f"Analysis of {called(self.model or 'model')}, {counted(len(self.blocks), 'block')}"
        done = "" if alarms else f", {len(spectra)} of {len(spectra)} spectra converged"
        return Description(title + done, tuple(facts), ", ".join(alarms), of.columns, of.rows)
