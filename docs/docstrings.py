"""Docstrings as the reference shows them: doctests as code, cross-references as links (an extension of Griffe)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parent / "reference"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc|data):`~?([\w.]+)`")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
SHOWN = {name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.M)}


class Docstrings(griffe.Extension):
    """Rewrite each docstring once, when its object has been read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Fence the doctests, and turn roles into links to what the reference shows."""
        if obj.docstring is not None:
            text = DOCTEST.sub(fenced, obj.docstring.value)
            obj.docstring.value = ROLE.sub(linked, text)


def fenced(doctest: re.Match[str]) -> str:
    """A doctest as a block of code, behind an empty line."""
    lines = [doctest[1] + line for line in ("```pycon", "```")]
    return "\n".join(["", lines[0], doctest[0], lines[1]])


def linked(role: re.Match[str]) -> str:
    """A link where the reference has the name, and its last part as code where not."""
    name = role[1].split(".")[-1]
    return f"[`{name}`][{role[1]}]" if role[1] in SHOWN else f"`{name}`"
