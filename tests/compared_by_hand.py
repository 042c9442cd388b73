"""A comparison of two analyses made by hand, in which one block is e times as curved, and no other differs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

import fabricated
import layerhess as lh
from layerhess.results.record import SampledGroups


def found(name: str = "stem.weight") -> lh.Comparison:
    """The first block, called so, differs by a log ratio of 1 with a standard error of about 0.05."""
    made = fabricated.analysis(groups=SampledGroups("one", np.ones(16)))
    other = fabricated.analysis(groups=SampledGroups("other", np.ones(16)))

    def sampled(analysis: lh.Analysis, factor: float) -> lh.Analysis:
        spectra = {}
        for spectrum in [*analysis.blocks.values(), analysis.full]:
            assert spectrum is not None
            own = factor if spectrum.name == "stem.weight" else 1.0
            called = name if spectrum.name == "stem.weight" else spectrum.name
            values = own * spectrum.eigenvalues
            spectra[called] = dataclasses.replace(
                spectrum, name=called, eigenvalues=values, sampling_errors=0.035 * np.abs(values),
                error_bounds=own * spectrum.error_bounds, missed_above=own * spectrum.missed_above,
            )  # fmt: skip
        full = spectra.pop("(full)")
        return dataclasses.replace(analysis, blocks=spectra, full=full)

    return lh.compare([sampled(made, 1.0), sampled(other, math.e)])
