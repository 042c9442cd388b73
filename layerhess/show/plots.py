"""The figures of an analysis, as one finds them: ``analysis.plot()``, ``analysis.plot.density()``, ..."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from layerhess import show
from layerhess.errors import InputError
from layerhess.linalg.described import Described, Description
from layerhess.results.spectrum import AnalysisRecord

if TYPE_CHECKING:
    from layerhess.show.style import Picture

KINDS = ("counts", "density")


class Plots(Described):
    """Figures of one analysis, each a ``matplotlib.figure.Figure`` of its own; pyplot is not touched.

    Colours are told apart by all kinds of colour vision, and nothing is told by colour alone, so that prints in grey
    can be read. What has not converged is drawn hollow, with a dashed bar as far as is known, and named in capitals.
    """

    def __init__(self, analysis: AnalysisRecord) -> None:
        self._analysis = analysis

    def __call__(self) -> Picture:
        """Eigenvalues of each block and the full model, both ends, with error bars."""
        picture: Picture = show.figures.overview(self._analysis)
        return picture

    def eigenvalues(self) -> Picture:
        """Every eigenvalue that was asked for, a row for each block in model order, the full model first.

        Bars are what the data leave open (two sampling errors) where that was measured, else the error bounds.

        Raises:
            InputError: no eigenvalue was asked for.
        """
        if not any(len(s.eigenvalues) or s.status.startswith("refused") for s in self._analysis.spectra()):
            raise _not_asked("eigenvalues", "eigenvalues", "top=1")
        picture: Picture = show.drawings.eigenvalues(self._analysis)
        return picture

    def density(self, kind: str = "counts") -> Picture:
        """How many directions bend how much.

        Args:
            kind: "counts", the number of eigenvalues above lambda, a line for each block and a bold one for the full
                model with its 95 % band; or "density", a panel for each with its own band.

        Raises:
            InputError: no density was asked for, or all of them were stopped early; unknown kind.
        """
        if kind not in KINDS:
            raise InputError(
                f"there is no kind {kind!r} of density", where="kind", what_to_do=f"use {KINDS[0]!r} or {KINDS[1]!r}"
            )
        _there((s.density for s in self._analysis.spectra()), "density", "densities")
        if not any(s.density is not None and s.density.finished for s in self._analysis.spectra()):
            raise InputError(
                "every density was stopped early: it has right moments and no shape",
                where="analysis.plot.density",
                what_to_do="analyse again, with a larger time_limit or max_passes",
            )
        draw = show.estimate_drawings.counts if kind == "counts" else show.estimate_drawings.densities
        picture: Picture = draw(self._analysis)
        return picture

    def coupling(self) -> Picture:
        """Which layers bend together: ||A_bc||_F over the root of ||A_bb||_F ||A_cc||_F, for each pair of blocks.

        Raises:
            InputError: couplings were not asked for, or there is a single block.
        """
        _there([self._analysis.coupling], "coupling", "couplings")
        found = self._analysis.coupling
        if found is None or len(found.blocks) < 2:
            raise InputError(
                "a single block is coupled with nothing",
                where="analysis.plot.coupling",
                what_to_do="analyse two blocks or more",
            )
        picture: Picture = show.estimate_drawings.coupling(self._analysis)
        return picture

    def mass(self) -> Picture:
        """Where the full model's eigenvectors lie: the share of each one's squared norm in every block.

        Raises:
            InputError: the full model was not asked for, or none of its eigenvalues.
        """
        if not self._analysis.full_mass:
            raise _not_asked("mass", "eigenvectors of the full model", "full=True, top=1")
        picture: Picture = show.drawings.mass(self._analysis)
        return picture

    def _describe(self) -> Description:
        return Description("Figures of an analysis", ("plot(), .eigenvalues(), .density(), .coupling(), .mass()",))


def _there(found: Iterable[object], name: str, plural: str) -> None:
    if all(one is None for one in found):
        raise _not_asked(name, plural, f"{name}=True")


def _not_asked(name: str, plural: str, argument: str) -> InputError:
    return InputError(
        f"this analysis has no {plural}: they were not asked for, or it stopped before them",
        where=f"analysis.plot.{name}",
        what_to_do=f"use lh.analyze(objective, {argument})",
    )
