"""Delays Ctrl-C and SIGTERM to a safe point; a second one acts at once, except while a model is restored."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM, as schedulers do; uncaught it ends with exit code 143."""

    def __init__(self, *ignored: object) -> None:
        super().__init__(128 + signal.SIGTERM)


STOPS = (KeyboardInterrupt, Terminated)
_asked: type[BaseException] | None = None  # by a signal since deferral began


def safe_point() -> None:
    """Raise what a signal asked for, if one came since :func:`deferred_interrupts` began: nothing is half done here.

    Raises:
        KeyboardInterrupt: after Ctrl-C. Terminated: after SIGTERM.
    """
    if _asked is not None:
        raise _asked


def terminate(signum: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM: raises :class:`Terminated` at once."""
    raise Terminated


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Until the end of the body Ctrl-C and SIGTERM wait for a :func:`safe_point`, which is yielded.

    Only in the main thread, and only signals that mean what Python or :func:`terminate` make of them; otherwise nothing
    changes. A process that was forked inside (a loader's worker) ends at SIGTERM.
    """
    global _asked
    owner = os.getpid()

    def deferring(error: type[BaseException]) -> Handler:
        def remember(signum: int, frame: FrameType | None) -> None:
            global _asked
            if os.getpid() != owner and signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
            if _asked is not None:
                raise error
            _asked = error

        return remember

    usual = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.SIG_DFL, terminate)}
    before = {number: signal.getsignal(number) for number in usual}
    ours = {number: how for number, how in before.items() if how in usual[number]}
    if not _in_main_thread() or not ours:
        yield safe_point
        return
    for number in ours:
        signal.signal(number, deferring(KeyboardInterrupt if number == signal.SIGINT else Terminated))
    try:
        yield safe_point
        safe_point()  # asked for after the last safe point: raise it now
    finally:
        _asked = None
        for number, how in ours.items():
            signal.signal(number, how)


@contextmanager
def terminable() -> Iterator[None]:
    """While the body runs, SIGTERM raises :class:`Terminated`, unless it has another meaning already."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Runs the body to its end; Ctrl-C or SIGTERM during it takes effect afterwards. In other threads it does nothing.

    A SIGTERM that ends the process at once goes on to do so.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = {number: how for number, how in before.items() if callable(how)}  # None: installed by other than Python
    if not _in_main_thread() or not kept:
        yield
        return
    pressed: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        pressed.append(signum)

    for number in kept:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, how in kept.items():
            signal.signal(number, how)
        for signum in dict.fromkeys(pressed):
            signal.raise_signal(signum)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
