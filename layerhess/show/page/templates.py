"""The templates of the pages: formulas typeset, signs beside headlines, settings in words; everything is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from layerhess.linalg.described import plain
from layerhess.show.page.answers import GOOD, WARN, WRONG

_SIGNS = {GOOD: "M2.5 8.5l3.5 3.5 7.5-8", WARN: "M8 2v7.5M8 12.6v1.2", WRONG: "M3.5 3.5l9 9M12.5 3.5l-9 9"}


@cache
def template(name: str) -> Template:
    """A template of a page, by its path below ``show``."""
    environment = Environment(
        loader=PackageLoader("layerhess", "show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mathematics"] = _mathematics
    environment.filters["plain"] = plain  # a name as text: it may hold characters that turn around what follows
    return environment.get_template(name)


_SYMBOLS = {
    "lambda_max": "λ<sub>max</sub>",
    "lambda_min": "λ<sub>min</sub>",
    "λmax": "λ<sub>max</sub>",
    "λmin": "λ<sub>min</sub>",
    "||A||_F^2": "‖A‖<sub>F</sub>²",
    "||A||_2^2": "‖A‖<sub>2</sub>²",
    "|lambda|": "|λ|",
    " * ||W||^2": "‖W‖²",
}
_PARTS = re.compile(r"(?<![\w.])([AFGH])_(bb|bc|cc)(?![\w.])")  # of a matrix, and not of a name such as w_bc.weight


def _mathematics(sentence: str) -> Markup:
    """One of our sentences, escaped, with its formulas typeset; names in it may hold anything."""
    text = _PARTS.sub(r"\1<sub>\2</sub>", str(escape(plain(sentence))))
    for written, typeset in _SYMBOLS.items():
        text = text.replace(written, typeset)
    return Markup(text)


def sign(tone: str) -> Markup:
    """A sign beside a headline, so that its colour is not all that tells."""
    if tone not in _SIGNS:
        return Markup("")
    return Markup(f'<svg class="sign" viewBox="0 0 16 16" aria-hidden="true"><path d="{_SIGNS[tone]}"/></svg>')


def setting(value: Any) -> str:
    """The value of a setting in words."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {setting(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
