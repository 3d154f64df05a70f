"""Signals that end a command: everything that is open is closed, temporary files go, and the status says why."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
AGAIN = 1.0
"""Seconds in which a second signal does not disturb the work of the first: programs that stop others send several."""


@contextmanager
def ending_signals() -> Iterator[list[int]]:
    """Turns the first signal into a ``KeyboardInterrupt``; gives a list of those that came.

    The list tells also where the exception was caught or changed on its way, as imports of compiled modules do.
    """
    came: list[int] = []
    last = 0.0

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        first, now = not came, time.monotonic()
        came.append(number)
        if first or now - last > AGAIN:
            last = now
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield came
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    # What the caller ignores, as nohup does, stays ignored.
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN and handler is not None]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, before[number])
