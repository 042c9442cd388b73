"""For llama.cpp: the type of each tensor, for ``llama-quantize --tensor-type-file``.

The bits are those of the plan; the numbers are llama.cpp's, which rounds blocks of 32 or 256 neighbours with scales of
its own (and an importance matrix, if it is given one), whatever granularity and scale the plan measured. So measure the
result again. Tensors that are not in the file get the type that llama-quantize is called with. Some of its versions
look at a line only if its type is another than that one, and none with --pure: call it with a type that the plan lacks.

=====  =====================  ============================
bits   rows of 256 k weights  other rows of 32 k weights
=====  =====================  ============================
2      Q2_K (2.625 bits)      none
3      Q3_K (3.4375)          none
4      Q4_K (4.5)             Q4_0 (4.5)
5      Q5_K (5.5)             Q5_0 (5.5)
6      Q6_K (6.5625)          none
8      Q8_0 (8.5)             Q8_0 (8.5)
=====  =====================  ============================
"""

from __future__ import annotations

import re
from typing import Any

from layerhess.errors import InputError
from layerhess.results.options import Option, Quantize
from layerhess.results.plan import PlannedWeight, PlanRecord

TYPES = {256: {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K"}, 32: {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}}
SUFFIX = ".weight"


def text(plan: PlanRecord) -> tuple[str, list[str]]:
    """The file's content, and a sentence for each weight that is not in it.

    The names are regular expressions there, and searched for: so they are written with ^, $ and escaped dots. A weight
    that architectures call differently has a line for each of its names; those that a model has not match nothing.

    Raises:
        InputError: gguf is missing, or knows none of the names.
    """
    chosen = [weight for weight in plan.weights if weight.name in plan.choice]
    names = _names([weight.name for weight in chosen])
    kinds = {weight.name: type_of(plan.choice[weight.name], weight) for weight in chosen}
    meant: dict[str, set[str]] = {}
    for ours, all_theirs in names.items():
        for theirs in all_theirs:
            meant.setdefault(theirs, set()).add(kinds[ours][0])
    lines, left_out = [], []
    for weight in chosen:
        (kind, reason), all_theirs = kinds[weight.name], names.get(weight.name, ())
        if not all_theirs:
            reason = "llama.cpp's name of it is not known"
        elif any(len(meant[theirs]) > 1 for theirs in all_theirs):
            reason = "llama.cpp's name of it is that of another weight in some architectures"
        if reason:
            left_out.append(f"{weight.name} ({plan.choice[weight.name].name}): {reason}")
        else:
            patterns = (theirs.replace(".", r"\.") for theirs in all_theirs)
            lines += [f"^{pattern}$={kind.lower()}\n" for pattern in patterns]
    return "".join(dict.fromkeys(lines)), left_out


def type_of(option: Option, weight: PlannedWeight) -> tuple[str, str]:
    """The GGML type of a weight, or why it has none."""
    if not isinstance(option, Quantize):
        return "", "llama.cpp has no type that does this"
    if len(weight.shape) != 2:
        return "", "llama.cpp quantises matrices"
    row = weight.shape[0 if weight.module == "Conv1D" else 1]  # transformers' Conv1D is stored transposed
    for side, types in TYPES.items():
        if option.bits in types and row % side == 0:
            return types[option.bits], ""
    return "", f"llama.cpp has no type of {option.bits} bits for rows of {row} weights"


def _names(ours: list[str]) -> dict[str, tuple[str, ...]]:
    """Names of tensors in llama.cpp, by the tables of the architectures that know most of ours.

    The number of a block is put back afterwards: one block's table is enough for all.
    """
    try:
        from gguf import MODEL_ARCH, get_tensor_name_map
        from gguf.tensor_mapping import TensorNameMap
    except ImportError as error:
        raise InputError(
            "llama.cpp's names of tensors are in the package gguf, which is not installed",
            where="plan.export('gguf')",
            what_to_do="pip install gguf",
        ) from error
    tables: list[dict[str, str]] = []
    shared = dict(TensorNameMap.block_mappings_cfg)
    for architecture in MODEL_ARCH:
        try:
            table = get_tensor_name_map(architecture, 1)
        finally:  # making one table leaves names of its architecture to those made later
            TensorNameMap.block_mappings_cfg.clear()
            TensorNameMap.block_mappings_cfg.update(shared)
        tables.append({name: theirs for name in ours if (theirs := _translated(table, name)) is not None})
    most = max(map(len, tables))
    if not most:
        raise InputError(
            "llama.cpp knows none of these weights by name; it runs language models",
            where="plan.export('gguf')",
            what_to_do="export to another format",
        )
    best = [table for table in tables if len(table) == most]
    return {
        name: tuple(dict.fromkeys(table[name] for table in best if name in table))
        for name in ours
        if any(name in table for table in best)
    }


def _translated(table: Any, name: str) -> str | None:
    if not name.endswith(SUFFIX):
        return None
    stem = name.removesuffix(SUFFIX)
    number = re.search(r"(?<=\.)\d+(?=\.)", stem)
    found: str | None = table.get_name(stem if number is None else f"{stem[: number.start()]}0{stem[number.end() :]}")
    if found is None:
        return None
    return (found if number is None else found.replace("blk.0.", f"blk.{number[0]}.")) + SUFFIX
