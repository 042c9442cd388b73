"""Pressing Ctrl-C in a test, or asking the process to end: a real signal for this process."""

from __future__ import annotations

import os
import signal
import threading


def press_ctrl_c() -> None:
    """A real SIGINT for this process, sent by another thread."""
    send(signal.SIGINT)


def send(signum: int) -> None:
    """A real signal for this process, sent by another thread."""
    thread = threading.Thread(target=os.kill, args=(os.getpid(), signum))
    thread.start()
    thread.join()
