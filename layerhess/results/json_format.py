"""Converts an analysis to strict JSON and named tensors, and back without loss.

The document's keys are the attribute names of :mod:`layerhess.results.record`, nested in the same way. Three rules:

1. NaN is written as ``null``, the infinities as the strings ``"inf"`` and ``"-inf"``. All other floats have the
   shortest digits that give the same float64 back.
2. ``eigenvectors`` is a list with one object per pair, parameter name -> name of a tensor in vectors.safetensors:
   ``full.eigenvectors[0].fc.weight``, or ``blocks[3].eigenvectors[0].fc.weight`` for the fourth block in order. A
   diagonal's ``value`` and ``standard_error`` are kept in the same way.
3. Keys that follow from the others (``converged`` of the whole, ``ok``, ``interval`` and ``derived`` of a spectrum) are
   for programs in other languages; they are not read back. ``schema`` is the version of this layout.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from layerhess.errors import InputError
from layerhess.results.options import Option, as_json, from_json
from layerhess.results.record import Floats
from layerhess.results.spectrum import AnalysisRecord, Spectrum

FORMAT = "layerhess analysis"
SCHEMA = 3  # 1: without the sums of each eigenpair by group of examples; 2: densities without what functions need
FLOAT32 = 1e-6  # of the largest node: what products in float32 may move an eigenvalue by

T = TypeVar("T")


class NewerSchemaError(ValueError):
    """The document was written by a later version."""


def encode(analysis: AnalysisRecord) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document (JSON types only, see the module) and its tensors, each contiguous and on the CPU."""
    tensors: dict[str, Tensor] = {}
    document: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA, "converged": analysis.converged}
    for item in fields(AnalysisRecord):
        value = getattr(analysis, item.name)
        if item.name == "blocks":
            document["blocks"] = {
                name: _plain(spectrum, f"blocks[{index}]", tensors)
                for index, (name, spectrum) in enumerate(value.items())
            }
        else:
            document[item.name] = _plain(value, item.name, tensors)
    return document, tensors


def document(record: Any, name: str) -> dict[str, Any]:
    """A dataclass without tensors in JSON types, marked as being of the format ``name``.

    Options of layers are written by name; what they are is added as ``defined_options``.
    """
    named: dict[str, Any] = {}
    plain: dict[str, Any] = _plain(record, "", named)
    defined = {key: as_json(value) for key, value in named.items()}
    return {"format": name, "schema": 1, **plain, **({"defined_options": defined} if defined else {})}


def of_document(kind: type[T], document: dict[str, Any]) -> T:
    """The way back from :func:`document`.

    Raises:
        ValueError: a key is missing, or a value has the wrong type; the sentence says which.
    """
    named = {}
    for name, content in _items(dict, document.get("defined_options", {}), "defined_options"):
        try:
            named[name] = from_json(_exactly(dict, content, f"defined_options.{name}"))
        except (InputError, TypeError, KeyError) as error:
            raise ValueError(f"defined_options.{name} is no option ({error})") from error
        if named[name].name != name:
            raise ValueError(f"defined_options.{name} is {named[name].name!r}")
    made = _decode(kind, document, "", named)
    assert isinstance(made, kind)
    return made


def dumps(document: dict[str, Any]) -> str:
    """Strict ASCII JSON, indented, a list of scalars on one line; ends with a newline."""
    return _pretty(document, 0) + "\n"


def loads(content: bytes) -> dict[str, Any]:
    """The document of a file's content.

    Raises:
        ValueError: not strict JSON, or not an object.
    """
    document = json.loads(content.decode("utf-8"), parse_constant=refuse_constant)
    if not isinstance(document, dict):
        raise ValueError(f"it holds {_kind(document)}, not an object")
    return document


def is_ours(document: dict[str, Any], name: str = FORMAT) -> bool:
    """True for a document of the format ``name``, of any version."""
    return document.get("format") == name


def check_schema(document: dict[str, Any], name: str = FORMAT, latest: int = SCHEMA) -> None:
    """Refuse a document of another format than ``name``, or of a later version than ``latest``.

    Raises:
        NewerSchemaError: written by a later version.
        ValueError: another format.
    """
    if not is_ours(document, name):
        raise ValueError(f"it is not marked as a {name}")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"its schema version is {schema!r}")
    if schema > latest:
        raise NewerSchemaError(f"its schema is version {schema}, and this layerhess reads up to version {latest}")


def vectors_digest(document: dict[str, Any]) -> str:
    """SHA-256 of the vectors file that belongs to the document.

    Raises:
        ValueError: the entry is missing.
    """
    entry = document.get("vectors")
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if not isinstance(digest, str):
        raise ValueError("vectors.sha256 is missing")
    return digest


def decode(document: dict[str, Any], tensors: Mapping[str, Tensor]) -> AnalysisRecord:
    """The analysis of a document.

    Raises:
        ValueError: a key is missing, or a value has the wrong type or length; the sentence says which.
    """
    made = _decode(AnalysisRecord, _brought_up(document), "", tensors)
    assert isinstance(made, AnalysisRecord)
    groups = 0 if made.groups is None else len(made.groups.counts)
    for name, spectrum in made.blocks.items():
        _consistent(spectrum, f"blocks.{name}", groups)
        if spectrum.name != name:
            raise ValueError(f"blocks.{name}.name is {spectrum.name!r}")
    if made.full is not None:
        _consistent(made.full, "full", groups)
    return made


def _brought_up(document: dict[str, Any]) -> dict[str, Any]:
    """A document of an earlier schema in the layout of this one."""
    schema = document.get("schema")
    if schema == SCHEMA:
        return document

    def spectrum(own: Any) -> Any:
        if not isinstance(own, dict):
            return own
        sums: dict[str, Any] = {"sampling_sums": []} if schema == 1 else {}
        density = own.get("density")
        drawn = {"density": _density_of_before(density, own)} if isinstance(density, dict) else {}
        return {**own, **sums, **drawn}

    blocks = document.get("blocks")
    named = {"blocks": {name: spectrum(own) for name, own in blocks.items()}} if isinstance(blocks, dict) else {}
    full = {"full": spectrum(document["full"])} if "full" in document else {}
    groups = {"groups": None} if schema == 1 else {}
    return {**document, **named, **full, **groups}


def _density_of_before(density: dict[str, Any], spectrum: dict[str, Any]) -> dict[str, Any]:
    """A density of schema 1 or 2; the precision of its products was not kept, and is taken to be that of float32."""
    empty = ("exhausted", "known", "known_bounds", "overlaps", "value_negative", "low_negative", "high_negative")
    nodes = [abs(node) for row in density.get("nodes") or [] for node in row if isinstance(node, float)]
    return {
        **{key: [] for key in empty},
        "numel": spectrum.get("numel"),
        "rounding": FLOAT32 * max(nodes, default=0.0),
        "lowest": None,
        "axis": "linear",
        "below_floor": 0.0,
        "floor": 0.0,
        "resolution": density.get("bandwidth"),
        **density,
    }


# -- to JSON ----------------------------------------------------------------------------------------------------------


def _keep(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> str:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        tensor = tensor.clone()  # a view of something larger, or shared with another name
    tensors[name] = tensor
    return name


def _plain(value: Any, where: str, named: dict[str, Any]) -> Any:
    """Any value of a result in JSON types.

    A tensor goes into ``named`` under the name ``where``, an option under its own. What JSON has no type for becomes
    its text.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return _keep(value, where, named)
    if isinstance(value, Option):
        named[value.name] = value
        return value.name
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), where, named)
    if isinstance(value, np.generic):
        return _plain(value.item(), where, named)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return plain_float(value)
    if is_dataclass(value) and not isinstance(value, type):
        made = {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}", named) for f in fields(value)}
        if isinstance(value, Spectrum):
            interval = _plain(value.interval, where, named)
            return made | {"ok": value.ok, "interval": interval, "derived": _plain(value.derived, where, named)}
        return made
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", named) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, f"{where}[{index}]", named) for index, item in enumerate(value)]
    if isinstance(value, PurePath | torch.dtype | torch.device):
        return str(value)
    return getattr(value, "__qualname__", None) or repr(value)


def plain_float(value: float) -> float | str | None:
    """As it is written: see above."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(value)


def _pretty(value: Any, depth: int) -> str:
    items: list[str]
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        items = [_pretty(item, depth + 1) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, allow_nan=False)
    indent = "\n" + "  " * (depth + 1)
    return opening + indent + f",{indent}".join(items) + "\n" + "  " * depth + closing


# -- from JSON --------------------------------------------------------------------------------------------------------


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, value: Any, where: str, named: Mapping[str, Any]) -> Any:
    """``value`` as the type ``kind`` of a field of the results; ``where`` is its path, for error messages.

    ``named``: tensors and options, which documents hold by name.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind is float:
        return _to_float(value, where)
    if kind in (str, bool, int):
        return _exactly(kind, value, where)
    if kind is Tensor:
        name = _exactly(str, value, where)
        if name not in named:
            raise ValueError(f"{where}: the vectors file has no tensor named {name!r}")
        return named[name]
    if kind == Option:
        name = _exactly(str, value, where)
        if name not in named:
            raise ValueError(f"{where}: defined_options has no {name!r}")
        return named[name]
    if origin is np.ndarray:
        return _to_array(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _decode(arguments[0], value, where, named)
    if origin is tuple:
        return tuple(_decode(arguments[0], v, f"{where}[{i}]", named) for i, v in _items(list, value, where))
    if origin is list:
        return [_decode(arguments[0], v, f"{where}[{i}]", named) for i, v in _items(list, value, where)]
    if origin is not None and issubclass(origin, Mapping):
        return {k: _decode(arguments[1], v, f"{where}.{k}", named) for k, v in _items(dict, value, where)}
    return _to_dataclass(kind, value, where, named)


def _to_dataclass(kind: Any, value: Any, where: str, named: Mapping[str, Any]) -> Any:
    entries = dict(_items(dict, value, where))
    arguments = {}
    for item in fields(kind):
        path = f"{where}.{item.name}".lstrip(".")
        if item.name not in entries:
            raise ValueError(f"{path} is missing")
        arguments[item.name] = _decode(_hints(kind)[item.name], entries[item.name], path, named)
    return kind(**arguments)


def _to_float(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where} is {_kind(value)}, not a number")
    return float(value)


def _to_array(kind: Any, value: Any, where: str) -> Any:
    if kind == Floats:
        try:
            return np.array(_numbers(value, where), dtype=np.float64)
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(where) else f"{where} is no rectangle") from error
    return np.array([_exactly(bool, v, f"{where}[{i}]") for i, v in _items(list, value, where)], dtype=np.bool_)


def _numbers(value: Any, where: str) -> list[Any]:
    return [
        _numbers(v, f"{where}[{i}]") if isinstance(v, list) else _to_float(v, f"{where}[{i}]")
        for i, v in _items(list, value, where)
    ]


def _exactly(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{where} is {_kind(value)}, not {_WORDS[kind]}")
    return value


def _items(kind: type[Any], value: Any, where: str) -> list[tuple[Any, Any]]:
    checked = _exactly(kind, value, where or "the document")
    return list(checked.items()) if kind is dict else list(enumerate(checked))


def _consistent(spectrum: Spectrum, where: str, groups: int) -> None:
    pairs = len(spectrum.eigenvalues)
    for name in ("error_bounds", "conditional_bounds", "converged", "end", "sampling_errors"):
        if len(getattr(spectrum, name)) != pairs:
            raise ValueError(f"{where}.{name} has {len(getattr(spectrum, name))} entries for {pairs} eigenvalues")
    if spectrum.eigenvectors and len(spectrum.eigenvectors) != pairs:
        raise ValueError(f"{where} has {len(spectrum.eigenvectors)} eigenvectors for {pairs} eigenvalues")
    sums = spectrum.sampling_sums
    if sums.ndim != 2 or len(sums) != pairs or sums.shape[1] not in (0, groups):
        raise ValueError(f"{where}.sampling_sums is {sums.shape} for {pairs} eigenvalues and {groups} groups")


_WORDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _WORDS.get(type(value), type(value).__name__)


def refuse_constant(name: str) -> float:
    """For NaN and Infinity, which strict JSON has not."""
    raise ValueError(f"{name} is not valid JSON")
