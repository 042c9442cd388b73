"""Docstrings as the reference shows them: doctests as code, roles as links, an entry for each name (for Griffe).

Docstrings of the code name several arguments or attributes in one entry, where they belong together; a reader of the
reference looks for each name at the beginning of an entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc|data):`~?([\w.]+)`")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes|Raises):\n(?:(?: .*)?\n?)+", re.MULTILINE)
PAGES = Path(__file__).parent / "reference"
SHOWN = {name for page in PAGES.glob("*.md") for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)}
ERRORS = ("InputError", "CheckError", "ProcessError", "KeyboardInterrupt")


class Docstrings(griffe.Extension):
    """Rewrite each docstring once, when its object has been read with all its members."""

    def on_function(self, *, func: Any, **_: Any) -> None:
        """A function's arguments are its parameters."""
        rewrite(func, [parameter.name for parameter in func.parameters])

    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        """A class has its members, and the parameters of __init__."""
        init = cls.members.get("__init__")
        parameters = init.parameters if init is not None and init.is_function else ()
        rewrite(cls, [*cls.members, *(parameter.name for parameter in parameters)])

    def on_attribute(self, *, attr: Any, **_: Any) -> None:
        """An attribute, or a property."""
        rewrite(attr, ())


def rewrite(obj: Any, names: Iterable[str]) -> None:
    """Fence the doctests, give every name an entry, and turn roles into links to what the reference shows."""
    if obj.docstring is None:
        return
    known = "|".join(sorted({*names, *ERRORS} - {"self"}))
    inside = re.compile(rf"(?<=[.;)])(?: |\n +)({known}): ")
    text = SECTION.sub(lambda section: inside.sub(r"\n    \1: ", section[0]), obj.docstring.value)
    obj.docstring.value = ROLE.sub(linked, DOCTEST.sub(fenced, text))


def fenced(doctest: re.Match[str]) -> str:
    """A doctest as a block of code, behind an empty line."""
    lines = [doctest[1] + line for line in ("```pycon", "```")]
    return "\n".join(["", lines[0], doctest[0], lines[1]])


def linked(role: re.Match[str]) -> str:
    """A link where the reference has the name, and its last part as code where not."""
    name = role[1].split(".")[-1]
    return f"[`{name}`][{role[1]}]" if role[1] in SHOWN else f"`{name}`"
