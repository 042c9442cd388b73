"""What ``layerhess plan`` asks: options of layers, budget, metric and held-out data, from what was typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerhess.cli.accuracy import accuracy
from layerhess.cli.factory import load_data, load_function
from layerhess.errors import InputError
from layerhess.planning.export.export import FORMATS
from layerhess.results.options import Option, Prune, Quantize, options_of

BUDGETS = "write 4bit, 3.5MB, or increase=0.01"


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`layerhess.plan`, but for ``objective``, ``out`` and ``progress``.

    Raises:
        InputError: naming the flag.
    """
    made = Maker(options["granularity"], not options["asymmetric"], options["scale"])
    return {
        "options": options_of([*made.listed(options["bits"], "--bits"), *_sparsities(made, options["sparsity"])]),
        "budget": budget_of(options["budget"]),
        "layers": options["layers"],
        "criterion": options["criterion"],
        "couplings": options["couplings"],
        "pinned": _pinned(made, options["pin"] or ()),
        "allowed": _allowed(made, options["allow"] or ()),
        "tied": [_names(group) for group in options["tie"] or ()],
        "metric": metric_of(options["metric"]),
        "held_out": None if options["held_out"] is None else load_data(options["held_out"], "--held-out"),
        "verify": options["verify"],
        "curvature": options["curvature"],
        "seed": options["seed"],
        "resume": options["resume"],
    }


class Maker:
    """Options of a layer from words: numbers of bits as quantisation of one kind, shares and 2:4 as pruning."""

    def __init__(self, granularity: str, symmetric: bool, scale: str) -> None:
        self.granularity, self.symmetric, self.scale = granularity, symmetric, scale

    def option(self, text: str, flag: str) -> Option:
        """One option.

        Raises:
            InputError: neither bits nor a sparsity.

        >>> made = Maker("tensor", True, "mse")
        >>> print(made.option("4", "--pin"), "/", made.option("2:4", "--pin"), "/", made.option("50%", "--pin"))
        w4 tensor mse / 2:4 sparse / 50% sparse
        """
        word = text.strip()
        if found := re.fullmatch(r"[wW]?(\d+)", word):
            return Quantize(int(found[1]), self.granularity, self.symmetric, self.scale)
        if word == "2:4":
            return Prune(word)
        if re.fullmatch(r"0?\.\d+|0", word):
            return Prune(float(word))
        if found := re.fullmatch(r"(\d+(?:\.\d+)?)%", word):
            return Prune(float(found[1]) / 100.0)
        raise InputError(
            f"{text!r} is neither a number of bits nor a sparsity",
            where=flag,
            what_to_do="write bits such as 4, or a sparsity such as 0.5 or 2:4",
        )

    def listed(self, text: str, flag: str) -> list[Option]:
        """Options divided by commas; none for "none"."""
        return [] if text.strip().lower() == "none" else [self.option(word, flag) for word in _names(text, flag)]


def budget_of(text: str) -> Any:
    """A budget as :func:`layerhess.plan` takes it.

    Raises:
        InputError: a number that is none. What is no budget at all, the plan refuses.

    >>> budget_of("4bit"), budget_of("increase=0.01"), budget_of("bits=4,increase=0.01")
    ('4bit', {'increase': 0.01}, {'bits': 4.0, 'increase': 0.01})
    """
    if "=" not in text:
        return text
    found: dict[str, Any] = {}
    for part in _names(text, "--budget"):
        key, _, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            raise InputError(f"the budget has {part!r}", where="--budget", what_to_do=BUDGETS) from None
    return found


def metric_of(text: str | None) -> Callable[..., Any] | None:
    """The metric by its name, or the user's function."""
    if text is None or text == "accuracy":
        return None if text is None else accuracy
    if ":" not in text:
        raise InputError(
            f"there is no metric {text!r}", where="--metric", what_to_do="write accuracy, or mine.py:function"
        )
    return load_function(text, "--metric")


def exports_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Kinds and files to export to.

    Raises:
        InputError: an unknown kind, or no file.
    """
    found = []
    for text in texts:
        kind, _, path = text.partition("=")
        if kind not in FORMATS or not path:
            raise InputError(
                f"{text!r} is not KIND=FILE with a known kind",
                where="--export",
                what_to_do=f"use one of {', '.join(FORMATS)}, such as torchao=torchao.json",
            )
        found.append((kind, path))
    return found


def _sparsities(made: Maker, text: str | None) -> list[Option]:
    if text is None:
        return []
    found = made.listed(text, "--sparsity")
    wrong = [option for option in found if not isinstance(option, Prune)]
    if wrong:
        raise InputError(
            f"a sparsity in {text!r} is not below 1", where="--sparsity", what_to_do="write shares such as 0.5, or 2:4"
        )
    return found


def _pinned(made: Maker, texts: Sequence[str]) -> dict[str, Option]:
    return {name: made.option(value, "--pin") for name, value in _pairs(texts, "--pin", "NAME=BITS")}


def _allowed(made: Maker, texts: Sequence[str]) -> dict[str, list[Option]]:
    return {name: made.listed(value, "--allow") for name, value in _pairs(texts, "--allow", "GLOB=2,4")}


def _pairs(texts: Sequence[str], flag: str, form: str) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise InputError(f"{text!r} is not {form}", where=flag, what_to_do=f"write {flag} {form}")
        if name in found:
            raise InputError(f"{name!r} is given twice", where=flag, what_to_do="give it once")
        found[name] = value
    return list(found.items())


def _names(text: str, flag: str = "--tie") -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"{text!r} has an empty part", where=flag, what_to_do="divide by single commas")
    return words
