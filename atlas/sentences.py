"""What the models have in common and where they differ: each sentence with the condition under which it is true."""

from __future__ import annotations

from typing import Any


def sentences(subjects: dict[str, Any]) -> list[str]:
    """The sentences, with their figures."""
    return []
