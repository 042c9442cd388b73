"""torchao, loaded when it is first needed, without what it says in vain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import SimpleNamespace

from layerhess.errors import InputError

INSTALL = "pip install 'layerhess[torchao]'"
# Kernels of newer GPUs for formats that a plan never uses, and a note to torchao's developers.
HARMLESS = (
    ("torchao", "Failed to load", ("_C_mxfp8", "_C_cutlass")),
    ("torch.utils._pytree", "", ("is an Enum subclass",)),
)


def torchao(where: str) -> SimpleNamespace:
    """What is used of torchao: its functions and classes by name.

    Args:
        where: what needs it, for error messages.

    Raises:
        InputError: torchao is not installed, or is of a version that does not load with this torch.
    """
    try:
        version = metadata.version("torchao")
    except metadata.PackageNotFoundError as error:
        raise InputError("torchao is not installed", where=where, what_to_do=INSTALL) from error
    try:
        with _silent():
            from torchao.core.config import config_from_dict, config_to_dict
            from torchao.quantization import (
                FqnToConfig,
                IntxUnpackedToInt8Tensor,
                IntxWeightOnlyConfig,
                PerAxis,
                PerGroup,
                quantize_,
            )
            from torchao.quantization.quant_primitives import MappingType
    except Exception as error:  # a compiled part may raise anything
        raise InputError(
            f"torchao {version} does not load with this torch: {type(error).__name__}: {error}",
            where=where,
            what_to_do=f"install a version that does: {INSTALL} --upgrade",
        ) from error
    return SimpleNamespace(
        version=version,
        config_from_dict=config_from_dict,
        config_to_dict=config_to_dict,
        FqnToConfig=FqnToConfig,
        IntxUnpackedToInt8Tensor=IntxUnpackedToInt8Tensor,
        IntxWeightOnlyConfig=IntxWeightOnlyConfig,
        PerAxis=PerAxis,
        PerGroup=PerGroup,
        quantize_=quantize_,
        MappingType=MappingType,
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, exactly the messages above are not logged; all others are."""
    filters = []
    for name, beginning, parts in HARMLESS:
        logger = logging.getLogger(name)

        def passes(record: logging.LogRecord, beginning: str = beginning, parts: tuple[str, ...] = parts) -> bool:
            text = record.getMessage()
            return not (text.startswith(beginning) and any(part in text for part in parts))

        logger.addFilter(passes)
        filters.append((logger, passes))
    try:
        yield
    finally:
        for logger, passes in filters:
            logger.removeFilter(passes)
