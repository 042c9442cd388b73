"""Whoever lacks an optional package reads one sentence, with the command that installs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

import fabricated
from layerhess.cli import demo
from layerhess.errors import InputError
from layerhess.planning.export import gguf
from layerhess.planning.weights.torchao_library import torchao

MISSING: dict[str, tuple[Callable[[], object], str]] = {
    "sklearn.datasets": (demo._digits, "pip install 'layerhess[demo]'"),
    "pandas": (lambda: fabricated.analysis().to_frame(), "pip install 'layerhess[pandas]'"),
    "lightning.pytorch": (lambda: importlib.import_module("layerhess.lightning"), "pip install 'layerhess[lightning]'"),
    "transformers": (
        lambda: importlib.import_module("layerhess.transformers"),
        "pip install 'layerhess[transformers]'",
    ),
    "torchao": (lambda: torchao("here"), "pip install 'layerhess[torchao]'"),
    "gguf": (lambda: gguf._names(["blk.0.attn_q.weight"]), "pip install gguf"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_package_that_is_missing_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asking, command = MISSING[package]
    for blocked in (package, "pytorch_lightning"):
        for loaded in [name for name in sys.modules if name.startswith(f"{blocked}.")]:
            monkeypatch.setitem(sys.modules, loaded, None)
        monkeypatch.setitem(sys.modules, blocked, None)
    for ours in ("layerhess.lightning", "layerhess.transformers"):
        monkeypatch.delitem(sys.modules, ours, raising=False)
    with pytest.raises((InputError, ImportError)) as caught:
        asking()
    said = str(caught.value)
    assert command in said and package.split(".")[0].replace("sklearn", "scikit-learn") in said.lower(), said
    assert "\n" not in said and len(said) < 300, said
