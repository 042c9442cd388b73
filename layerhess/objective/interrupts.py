"""Delays Ctrl-C to a safe point between two batches; a second Ctrl-C acts at once, except while a model is restored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt if Ctrl-C was pressed since.

    Only in the main thread, and only if Ctrl-C has Python's own meaning; otherwise nothing changes.
    """
    pressed = False

    def checkpoint() -> None:
        if pressed:
            raise KeyboardInterrupt

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if not _in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield checkpoint
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield checkpoint
        checkpoint()  # pressed after the last safe point: raise it now
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Runs the body to its end; a Ctrl-C during it takes effect afterwards. In other threads it does nothing."""
    before = signal.getsignal(signal.SIGINT)
    if not _in_main_thread() or before is None:  # None: installed by something other than Python
        yield
        return
    pressed = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
