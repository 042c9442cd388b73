"""Which versions of what produced a result."""

from __future__ import annotations

import importlib.metadata
import platform

import torch


def versions() -> dict[str, str]:
    """Package -> version, for the result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("layerhess", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
