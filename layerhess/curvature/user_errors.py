"""Exceptions of user code in a form that every rank raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layerhess.errors import LayerhessError, first_line


@contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Turn exceptions of other kinds into a RuntimeError: a rank that hears of one raises it too, so that all agree.

    Only where what fails is tried again in another way, and shows its own exception there.
    """
    try:
        yield
    except (LayerhessError, MemoryError, RuntimeError):
        raise
    except Exception as error:
        raise RuntimeError(first_line(error)) from error
