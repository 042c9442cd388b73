"""Analyses made by hand, so that what consumes results can be tested without computing any."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from layerhess.analysis.result import Analysis
from layerhess.linalg.estimates import CouplingEstimate, TraceEstimate
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.results.record import Check, Counts
from layerhess.results.spectrum import FULL_NAME, Spectrum

LAYERS = {
    "stem.weight": (8, 1, 3, 3),
    "stem_bn.weight": (8,),
    "stem_bn.bias": (8,),
    "block1.conv1.weight": (8, 8, 3, 3),
    "block1.conv2.weight": (8, 8, 3, 3),
    "head.weight": (10, 16),
    "head.bias": (10,),
}


def spectrum(name: str = "fc.weight", shape: tuple[int, ...] = (3, 4), seed: int = 0, **changes: Any) -> Spectrum:
    """A converged spectrum of one parameter with two top and one bottom eigenvalue and float32 eigenvectors."""
    rng = np.random.default_rng(seed)
    top = float(rng.lognormal(0.0, 1.5))
    values = np.array([top, 0.61 * top, -0.031 * top])
    numel = int(np.prod(shape))
    vectors = rng.standard_normal((3, numel))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = Spectrum(
        name=name,
        operator="hessian",
        parameters=(name,),
        numel=numel,
        eigenvalues=values,
        error_bounds=np.array([7.3e-4, 5.1e-4, 2.2e-4]) * top,
        conditional_bounds=np.array([3.1e-6 * top, np.nan, 1.7e-6 * top]),
        converged=np.array([True, True, True]),
        end=("top", "top", "bottom"),
        status="converged",
        eigenvectors=[{name: torch.tensor(v, dtype=torch.float32).reshape(shape)} for v in vectors],
        rounding=1e-7 * top,
        rounding_source="measured",
        missed_factor=1.04,
        missed_above=1.04 * top,
        missed_below=-0.05 * top,
        missed_probability=0.01,
        steps=24,
        path="lanczos",
        weight_norm_squared=float(rng.lognormal(2.0, 1.0)),
    )
    return dataclasses.replace(made, **changes)


def unconverged(made: Spectrum) -> Spectrum:
    """The same spectrum, stopped before its first eigenvalue was good enough."""
    return dataclasses.replace(
        made,
        converged=np.array([False, *made.converged[1:]]),
        error_bounds=np.array([abs(made.eigenvalues[0]) * 0.4, *made.error_bounds[1:]]),
        status="not converged: 500 passes were spent; the bound so far is 0.4; raise max_passes or tol",
        missed_factor=float("inf"),
        missed_above=float("inf"),
    )


def refused(name: str, numel: int = 12) -> Spectrum:
    """A spectrum without any number, because its self-check failed."""
    none = np.empty(0)
    return Spectrum(
        name=name,
        operator="hessian",
        parameters=(name,),
        numel=numel,
        eigenvalues=none,
        error_bounds=none,
        conditional_bounds=none,
        converged=np.empty(0, dtype=bool),
        end=(),
        status="refused: the product is not symmetric (weight_norm in fc)",
    )


def complete(name: str, shape: tuple[int, ...] = (10,), seed: int = 7) -> Spectrum:
    """A block whose whole spectrum was computed."""
    numel = int(np.prod(shape))
    whole = np.sort(np.random.default_rng(seed).standard_normal(numel))[::-1].copy()
    base = spectrum(name, shape, seed)
    return dataclasses.replace(
        base,
        eigenvalues=whole[[0, 1, -1]],
        error_bounds=np.full(3, 1.3e-12),
        conditional_bounds=np.full(3, 1.3e-12),
        status="complete",
        complete=True,
        spectrum=whole,
        missed_factor=1.0,
        missed_above=float(whole[0]),
        missed_below=float(whole[-1]),
        missed_probability=0.0,
        path="dense",
    )


def analysis(*, bad: bool = False, **changes: Any) -> Analysis:
    """A whole analysis of seven parameters and the full model; ``bad`` leaves two blocks undone."""
    blocks = {name: spectrum(name, shape, seed) for seed, (name, shape) in enumerate(LAYERS.items())}
    blocks["stem_bn.bias"] = dataclasses.replace(
        blocks["stem_bn.bias"],
        eigenvalues=np.zeros(3),
        error_bounds=np.full(3, 2.1e-9),
        conditional_bounds=np.full(3, np.nan),
        status="zero",
        missed_factor=float("nan"),
    )
    blocks["head.bias"] = complete("head.bias")
    if bad:
        blocks["stem.weight"] = unconverged(blocks["stem.weight"])
        blocks["head.weight"] = refused("head.weight", 160)
    numel = sum(int(np.prod(shape)) for shape in LAYERS.values())
    largest = max(float(s.eigenvalues[0]) for s in blocks.values() if len(s.eigenvalues))
    full = dataclasses.replace(
        spectrum(FULL_NAME, (numel,), 99),
        parameters=tuple(LAYERS),
        eigenvalues=np.array([1.7, 0.9, -0.4]) * largest,
        error_bounds=np.array([7e-4, 8e-4, 2e-4]) * largest,
        eigenvectors=[
            {n: torch.full(s, (1.0 / numel) ** 0.5, dtype=torch.float32) for n, s in LAYERS.items()} for _ in range(3)
        ],
    )
    rng = np.random.default_rng(5)
    mass = [dict(zip(LAYERS, map(float, rng.dirichlet(np.full(len(LAYERS), 0.5))), strict=True)) for _ in range(3)]
    made = Analysis(
        blocks=blocks,
        full=full,
        full_mass=[{**row, "(not in any block)": 0.0} for row in mass],
        frozen=("embedding.weight",),
        uncovered=(),
        loss=0.012345678901234567,
        loss_count=1437.0,
        examples=1437,
        batches=3,
        gradient_norm=0.0021,
        settings={"blocks": "parameter", "operator": "hessian", "top": 2, "bottom": 1, "tol": 1e-3, "time_limit": None},
        checks=(
            Check("symmetry", True, "largest relative asymmetry 3e-07 against 1e-03 allowed"),
            Check("determinism", True, "two passes gave the same loss", block="", module=""),
        ),
        notes=("attention runs under the MATH kernels", "block head.bias: whole spectrum computed"),
        counts=Counts(41, 160, 160, 3012, 120, {"solve": {"forwards": 120, "backwards": 120, "products": 2900}}),
        seconds={"survey": 0.2, "checks": 1.1, "solve": 21.5},
        versions={"layerhess": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        model="DigitNet",
        total_numel=numel,
        created="2030-01-02T03:04:05+00:00",
        partial="interrupted (Ctrl-C) after 12 passes" if bad else "",
    )
    return dataclasses.replace(made, **changes)


def one(made: Spectrum, **changes: Any) -> Analysis:
    """An analysis of a single block and nothing else."""
    return analysis(blocks={made.name: made}, full=None, full_mass=[], **changes)


def estimated(made: Analysis, seed: int = 3) -> Analysis:
    """The same analysis with a trace, a density, a sampling error and a coupling for every block and the whole."""
    rng = np.random.default_rng(seed)

    def filled(found: Spectrum) -> Spectrum:
        if not len(found.eigenvalues) or found.status == "zero":
            return found
        top = float(found.eigenvalues[0])
        values = np.sort(top * np.geomspace(1.0, 1e-5, max(found.numel, 3)) * rng.uniform(0.5, 1.0))[::-1].copy()
        density = exact_density(values, Density())
        return dataclasses.replace(
            found,
            trace=TraceEstimate(3.1 * top, 0.07 * top, 2.9 * top, 3.3 * top, 24, "hutch++", True, "", 0.2 * top),
            density=dataclasses.replace(
                density, probes=2, bandwidth=1e-4 * top,
                nodes=np.stack([values, 0.9 * values]), weights=np.full((2, len(values)), 1.0 / len(values)),
            ),
            sampling_errors=0.04 * np.abs(found.eigenvalues),
        )  # fmt: skip

    blocks = {name: filled(found) for name, found in made.blocks.items()}
    shares = rng.uniform(0.2, 0.9, (len(blocks), len(blocks)))
    own = rng.lognormal(0.0, 1.0, len(blocks))
    value = (shares + shares.T) / 2.0 * np.sqrt(np.outer(own, own))
    np.fill_diagonal(value, own)
    distances = rng.uniform(0.1, 0.9, value.shape)
    coupling = CouplingEstimate(
        tuple(blocks), value, 0.03 * value, 0.82, 0.01, 8, "converged", (distances + distances.T) / 2, 0.02 * value
    )
    full = None if made.full is None else filled(made.full)
    return dataclasses.replace(made, blocks=blocks, full=full, coupling=coupling)
