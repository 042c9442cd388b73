"""Ctrl-C waits for a safe point between two batches; a second one does not wait."""

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

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield checkpoint
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield checkpoint
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
