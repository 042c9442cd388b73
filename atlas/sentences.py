"""What the models have in common and where they differ: each sentence with the condition under which it is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layerhess.linalg.numbers import count, number

from .pictures import decades, is_norm

FULL = "(full)"
SHORT = {
    "efficientnet-lite0": "EfficientNet",
    "crepe-tiny": "CREPE tiny",
    "crepe-full": "CREPE full",
    "speaker-encoder": "the speaker encoder",
    "chgnet-energies": "CHGNet on energies",
    "chgnet-forces": "CHGNet on forces",
}
Subjects = dict[str, Any]
Found = dict[str, Any]


def sentences(subjects: Subjects) -> list[str]:
    """Ten sentences, with their figures.

    Raises:
        ArithmeticError: the figures do not bear a sentence out, their bounds included.
    """
    told = []
    for sentence in SENTENCES:
        text, true = sentence(subjects)
        if not true:
            raise ArithmeticError(f"this sentence is not true of these figures: {text}")
        told.append(text)
    return told


def tops(found: Found) -> dict[str, float]:
    """Block -> its largest eigenvalue, of those with a positive one."""
    return {block: module["top"][0] for block, module in found["modules"].items() if module["top"][0] > 0.0}


def sharpest(found: Found) -> str:
    """The block with the largest eigenvalue."""
    return max(found["modules"], key=lambda block: float(found["modules"][block]["top"][0]))


def holder(found: Found) -> str:
    """The block with most of the full model's top direction."""
    return max(found["modules"], key=lambda block: float(found["modules"][block]["share"][0]))


def excess(found: Found) -> float:
    """The full model's largest eigenvalue over that of its sharpest block."""
    return float(found["examined"][FULL]["top"][0] / max(tops(found).values()))


def depth_below(found: Found) -> float:
    """The size of the full model's smallest eigenvalue, where it is negative, over its largest."""
    full = found["examined"][FULL]
    return -float(full["bottom"][0] / full["top"][0])


def medians(found: Found) -> tuple[float, float]:
    """Of the largest eigenvalues of normalisations, and of the other blocks; positive ones only."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    for module in found["modules"].values():
        if module["top"][0] > 0.0:
            groups[is_norm(module)].append(module["top"][0])
    return float(np.median(groups[True])), float(np.median(groups[False]))


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, of numbers without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _over(subjects: Subjects, figure: Callable[[Found], float]) -> dict[str, float]:
    return {SHORT[name]: figure(found) for name, found in subjects.items()}


def _ends(figures: dict[str, float], unit: str = "") -> str:
    least, most = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    return f"{number(figures[least], 4)}{unit} ({least}) to {number(figures[most], 4)}{unit} ({most})"


def _coupled(subjects: Subjects) -> tuple[str, bool]:
    over = _over(subjects, excess)
    sure = all(
        found["examined"][FULL]["top"][0] + found["examined"][FULL]["top"][1] >= max(tops(found).values())
        for found in subjects.values()
    )
    text = (
        f"The full model's largest eigenvalue is {_ends(over)} times that of the sharpest block: coupling "
        "between blocks can add next to nothing, or more than the sharpest block has."
    )
    return text, sure and min(over.values()) < 1.05 and max(over.values()) > 2.0


def _concentrated(subjects: Subjects) -> tuple[str, bool]:
    shares = {SHORT[name]: found["modules"][holder(found)]["share"] for name, found in subjects.items()}
    halves = {name: share for name, (share, off) in shares.items() if share - off > 0.5}
    below = {name: share for name, (share, off) in shares.items() if share + off < 0.5}
    listed = ", ".join(f"{name} {100 * share:.3g} %" for name, share in halves.items())
    text = (
        f"In {len(halves)} of {len(subjects)} models a single block holds more than half of the top direction: "
        f"{listed}."
    )
    return text, len(halves) + len(below) == len(subjects) and len(halves) >= 2


def _same_place(subjects: Subjects) -> tuple[str, bool]:
    same = [SHORT[name] for name, found in subjects.items() if sharpest(found) == holder(found)]
    text = (
        f"The block with the largest eigenvalue is also the one with most of the top direction in {len(same)} of "
        f"{len(subjects)}: it says where the full model bends most, even where it does not say how much."
    )
    return text, len(same) >= len(subjects) - 1


def _spread(subjects: Subjects) -> tuple[str, bool]:
    over = _over(subjects, decades)
    text = (
        f"Between the sharpest and the flattest block of one model lie {_ends(over)} powers of ten, blocks without any "
        "curvature left out."
    )
    return text, min(over.values()) > 2.0


def _norms(subjects: Subjects) -> tuple[str, bool]:
    ratios = {}
    for name, found in subjects.items():
        if any(is_norm(module) for module in found["modules"].values()):
            norm, weight = medians(found)
            ratios[SHORT[name]] = norm / weight
    above = {name: ratio for name, ratio in ratios.items() if ratio > 1.0}
    below = {name: ratio for name, ratio in ratios.items() if ratio < 1.0}
    text = (
        f"The median normalisation is sharper than the median of the other blocks in {len(above)} of {len(ratios)} "
        f"models that have them, by a factor of {_ends(above)}"
        + "".join(f"; in {name} it is flatter, {number(ratio, 2)} times as sharp" for name, ratio in below.items())
        + "."
    )
    return text, len(above) >= 3 and all(ratio > 1.5 or ratio < 0.67 for ratio in ratios.values())


def _negative(subjects: Subjects) -> tuple[str, bool]:
    over = _over(subjects, depth_below)
    sure = all(sum(found["examined"][FULL]["bottom"]) < 0.0 for found in subjects.values())
    text = (
        "None of them is at a minimum of this loss: every full Hessian has a negative eigenvalue, whose size is "
        f"{_ends({name: 100 * value for name, value in over.items()}, ' %')} of the largest."
    )
    return text, sure


def _two_sizes(subjects: Subjects) -> tuple[str, bool]:
    small, large = subjects["crepe-tiny"], subjects["crepe-full"]
    (low, low_off), (high, high_off) = (found["examined"][FULL]["top"] for found in (small, large))
    block = holder(small)
    shares = [100 * found["modules"][block]["share"][0] for found in (small, large)]
    text = (
        f"CREPE full has {count(round(large['parameters'] / small['parameters']))} times the parameters of CREPE tiny, "
        f"and its largest eigenvalue is {number(high / low, 3)} times as large; in both it is the scale and shift of "
        f"the last normalisation, `{block}`, that holds the top direction ({shares[0]:.3g} % and {shares[1]:.3g} %)."
    )
    return text, block == holder(large) == "conv6_BN" and high - high_off > low + low_off and min(shares) > 50.0


def _two_losses(subjects: Subjects) -> tuple[str, bool]:
    energies, forces = subjects["chgnet-energies"], subjects["chgnet-forces"]
    shared = [block for block in tops(energies) if block in tops(forces)]
    ranks = rank_correlation([tops(energies)[b] for b in shared], [tops(forces)[b] for b in shared])
    ratios = [tops(forces)[block] / tops(energies)[block] for block in shared]
    full = [found["examined"][FULL]["top"][0] for found in (energies, forces)]
    text = (
        f"Asking CHGNet for forces and stress too makes the full model {number(full[1] / full[0], 3)} times as sharp, "
        f"but the median block {number(float(np.median(ratios)), 3)} times; the order of its blocks stays much the "
        f"same (rank correlation {ranks:.2f})."
    )
    return text, full[1] > full[0] and float(np.median(ratios)) > full[1] / full[0] and ranks > 0.6


def _without(subjects: Subjects) -> tuple[str, bool]:
    silent = {
        name: [block for block, module in subjects[name]["modules"].items() if module["top"] == [0.0, 0.0]]
        for name in subjects
    }
    mine = silent["chgnet-energies"]
    text = (
        f"{len(mine)} of CHGNet's {len(subjects['chgnet-energies']['modules'])} modules have no curvature at all: "
        "energies and forces do not depend on them (the last layer of angles, and the head for magnetic moments); no "
        "other model has such a block."
    )
    alone = all(not blocks for name, blocks in silent.items() if not name.startswith("chgnet"))
    return text, alone and mine == silent["chgnet-forces"] and len(mine) > 0


def _few(subjects: Subjects) -> tuple[str, bool]:
    over = {}
    for name, found in subjects.items():
        trace = found["examined"][FULL]["trace"]
        over[SHORT[name]] = 100 * found["examined"][FULL]["top"][0] / trace[0]
    text = (
        "A single direction carries much of the curvature: of the trace of the full Hessian, the sum of all its "
        f"eigenvalues, the largest one is {_ends(over, ' %')}."
    )
    sure = all(4 * abs(found["examined"][FULL]["trace"][1]) < abs(found["examined"][FULL]["trace"][0])
               for found in subjects.values())  # fmt: skip
    return text, sure and min(over.values()) > 1.0


SENTENCES: list[Callable[[Subjects], tuple[str, bool]]] = [
    _coupled, _concentrated, _same_place, _spread, _norms, _negative, _few, _two_sizes, _two_losses, _without,
]  # fmt: skip
