"""Help as plain text: options in groups with headings, then examples; never wider than the terminal."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

FIRST = "Options"
UNBROKEN = "\N{NO-BREAK SPACE}"


class Command(TyperCommand):
    """A command whose options stand under the headings of their groups, in the order of their first options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the common options, then the other groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], FIRST: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                heading = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or FIRST
                groups.setdefault(heading, []).append(record)
        widest = max((len(first) for records in groups.values() for first, _ in records), default=0)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):  # all groups with one column of descriptions
                    formatter.write_dl(
                        [(f"{first:{min(widest, 30)}}", _kept_together(text)) for first, text in records]
                    )
        formatter.buffer[:] = [text.replace(UNBROKEN, " ") for text in formatter.buffer]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, line by line."""
        write_examples(self.epilog, formatter)


class Commands(TyperGroup):
    """The group of all commands, with examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, line by line."""
        write_examples(self.epilog, formatter)


def _kept_together(text: str) -> str:
    """A short default in brackets is not divided between two lines."""
    return re.sub(r"\[[^]]{1,24}\]", lambda found: found[0].replace(" ", UNBROKEN), text)


def write_examples(text: str | None, formatter: Any) -> None:
    """Lines as they are, under a heading."""
    if text:
        with formatter.section("Examples"):
            for line in text.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
