"""Pressing Ctrl-C in a test: a real SIGINT for this process."""

from __future__ import annotations

import os
import signal
import threading


def press_ctrl_c() -> None:
    """A real SIGINT for this process, sent by another thread."""
    thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    thread.start()
    thread.join()
