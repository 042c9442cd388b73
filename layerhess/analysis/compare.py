"""``layerhess.compare``: analyses held side by side, block by block, with methods to show, draw and save that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from layerhess.analysis.result import load
from layerhess.errors import InputError
from layerhess.results import json_format, store
from layerhess.results.comparison import ComparisonRecord, compared
from layerhess.results.spectrum import AnalysisRecord
from layerhess.show import comparison
from layerhess.show.comparison.frame import to_frame
from layerhess.show.comparison.table import as_text
from layerhess.show.comparison.table import notebook as as_html
from layerhess.show.summary import condition, operator_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Comparison(ComparisonRecord):
    """What :func:`layerhess.compare` returns; :class:`layerhess.results.comparison.ComparisonRecord` lists the fields.

    Attributes:
        further: of more than two analyses, those of the third, the fourth, ... with the first.
    """

    further: tuple[Comparison, ...] = ()

    @property
    def pairs(self) -> tuple[Comparison, ...]:
        """This one and the further ones: each analysis, from the second on, compared with the first."""
        return (self, *self.further)

    def to_frame(self) -> pd.DataFrame:
        """One row per block and pair of analyses; needs pandas."""
        return to_frame(self.pairs)

    def plot(self) -> Figure:
        """The log ratios of all blocks with their errors (a matplotlib figure)."""
        picture: Figure = comparison.figures.log_ratios(self.pairs)
        return picture

    def to_json(self) -> str:
        """Strict JSON, keys as the attributes are called."""
        return json_format.dumps(json_format.document(self, "layerhess comparison"))

    def save(self, path: str | Path) -> Path:
        """Write comparison.json and comparison.html into the folder ``path``, atomically as a whole.

        Raises:
            InputError: the folder cannot be written, or holds something else.
        """
        return store.save_comparison(path, self.to_json(), comparison.page.as_html(self.pairs))

    def __str__(self) -> str:
        return as_text(self.pairs)

    def __repr__(self) -> str:
        different = sum(block.significant for block in self.blocks.values())
        more = f", {len(self.further)} further" if self.further else ""
        return f"Comparison({self.second} against {self.first}: {different} of {len(self.blocks)} different{more})"

    def _repr_html_(self) -> str:
        return as_html(self.pairs)


def compare(analyses: Sequence[AnalysisRecord | str | Path]) -> Comparison:
    """Hold two or more analyses side by side: which layers' curvature differs, and by more than chance?

    Each block is compared by the log ratio of its largest eigenvalues, log(second / first). A difference is significant
    where it exceeds the error bounds of both eigenvalues, and what is left of it exceeds chance: that other examples
    would have given other numbers, as measured with ``sampling=True``. Where both were measured on the same groups of
    examples, the groups' differences give its standard error ("paired"), and much smaller differences are found; else
    the standard errors of both add in quadrature. The false discovery rate over all blocks and the full model is 5 %
    (Benjamini & Yekutieli 2001). Without sampling errors nothing is significant; what has not converged is not
    compared.

    The first order of the sampling errors is described with :func:`layerhess.analysis.sampling_errors.sampling_errors`:
    they are too large rather than too small. An eigenvalue that was missed altogether is not part of the error bounds;
    the status says where one could explain a difference.

    Args:
        analyses: two or more, each an :class:`layerhess.Analysis` or the folder of a saved one.

    Returns:
        The second compared with the first: ``.blocks[name]``, and "(full)" for the whole model, see
        :class:`layerhess.results.comparison.BlockComparison`. Of more than two, ``.further[0]`` compares the third with
        the first, ``.further[1]`` the fourth, each in the same way, with a false discovery rate of its own;
        ``.to_frame()``, the table, the plot and the page have them all.

    Raises:
        InputError: fewer than two; what is no analysis; different operators; no block in common.

    >>> import torch, layerhess as lh
    >>> x = torch.linspace(1.0, 2.0, 8).double()[:, None]
    >>> def analysed(slope):
    ...     model = torch.nn.Linear(1, 1, bias=False).double()
    ...     return lh.analyze(lh.Objective(model, (slope * x, x), torch.nn.MSELoss()), sampling=True)
    >>> block = lh.compare([analysed(1.0), analysed(2.0)]).blocks["weight"]      # lambda = 2 mean(slope^2 x^2)
    >>> round(block.log_ratio, 6), block.paired, block.significant      # log 4, on other inputs
    (1.386294, False, True)
    """
    if isinstance(analyses, (str, Path, AnalysisRecord)) or not isinstance(analyses, Sequence):
        raise InputError(
            f"the analyses are {type(analyses).__name__}, not a list", where="analyses", what_to_do="give [a, b]"
        )
    if len(analyses) < 2:
        raise InputError(
            f"a comparison takes two analyses or more, and {len(analyses)} was given"
            if len(analyses)
            else "a comparison takes two analyses or more, and none was given",
            where="analyses",
            what_to_do="give a list of analyses or of folders that save() or --out was given",
        )
    read = [_read(given, place) for place, given in enumerate(analyses, 1)]
    names = [str(a) if isinstance(a, (str, Path)) else f"analysis {place}" for place, a in enumerate(analyses, 1)]
    for other, name in zip(read[1:], names[1:], strict=True):
        _refuse_incomparable(read[0], other, (names[0], name))
    pairs = [compared(read[0], other, (names[0], name)) for other, name in zip(read[1:], names[1:], strict=True)]
    made = [Comparison(**{field.name: getattr(pair, field.name) for field in fields(pair)}) for pair in pairs]
    given = {field.name: getattr(made[0], field.name) for field in fields(pairs[0])}
    return Comparison(**given, further=tuple(made[1:]))


def _read(given: AnalysisRecord | str | Path, place: int) -> AnalysisRecord:
    if isinstance(given, (str, Path)):
        return load(given)
    if not isinstance(given, AnalysisRecord):
        raise InputError(
            f"number {place} is {type(given).__name__}, not an analysis",
            where="analyses",
            what_to_do="give what analyze() or load() returned, or a folder",
        )
    return given


def _refuse_incomparable(first: AnalysisRecord, second: AnalysisRecord, names: tuple[str, str]) -> None:
    operators = [operator_of(a) + condition(a) for a in (first, second)]
    if operators[0] != operators[1]:
        raise InputError(
            f"{names[0]} is of the {operators[0]}, {names[1]} of the {operators[1]}: these are different matrices",
            where="operator",
            what_to_do="analyse both with the same operator=",
        )
    own, other = first.blocks, second.blocks
    if not own.keys() & other.keys():
        raise InputError(
            f"{names[0]} and {names[1]} have no block in common ({', '.join(list(own)[:3]) or 'none'} against "
            f"{', '.join(list(other)[:3]) or 'none'})",
            where="blocks",
            what_to_do="compare analyses of the same model, with the same blocks=",
        )
