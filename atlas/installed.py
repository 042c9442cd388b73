"""A module of an installed package, read from its file without running the package's ``__init__``.

torchcrepe and resemblyzer import audio libraries there (librosa, torchaudio, webrtcvad), which no network needs.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import files
from pathlib import Path
from types import ModuleType
from typing import Any


def path_of(distribution: str, name: str) -> Path:
    """Where a file of an installed distribution is, by the end of its path.

    Raises:
        FileNotFoundError: it has no such file.
    """
    for file in files(distribution) or ():
        if file.as_posix().endswith(name):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{distribution} is installed without {name}: make test-real installs it")


def module_of(distribution: str, name: str, stand_ins: dict[str, dict[str, Any]]) -> ModuleType:
    """The module in that file; ``stand_ins`` are what it imports meanwhile: module name -> its contents."""
    path = path_of(distribution, name)
    specification = importlib.util.spec_from_file_location(f"{distribution}_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    made = importlib.util.module_from_spec(specification)
    before = {key: sys.modules.get(key) for key in stand_ins}
    try:
        for key, contents in stand_ins.items():
            sys.modules[key] = ModuleType(key)
            vars(sys.modules[key]).update(contents)
        specification.loader.exec_module(made)
    finally:
        for key, module in before.items():
            if module is None:
                sys.modules.pop(key, None)
            else:
                sys.modules[key] = module
    return made
