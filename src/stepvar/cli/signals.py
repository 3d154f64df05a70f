"""Signals that end a command: everything that is open is closed, temporary files go, and the status says why."""

from __future__ import annotations

import os
import signal
import sys
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


class _Stop:
    """Turns signals into a ``KeyboardInterrupt``, and raises it again as long as somebody catches it on its way.

    Compiled modules that try an optional import, as PyTorch does while it is imported, drop whatever that raises; a
    command would go on as if nothing had been asked of it.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self._done = threading.Event()
        self._sending = threading.Lock()
        self._last = 0.0
        self._reminded = False

    def __call__(self, number: int, frame: Any) -> None:
        if self._reminded:
            self._reminded = False
            if self._done.is_set() or _interrupted():
                return
            raise KeyboardInterrupt
        first, now = not self.came, time.monotonic()
        self.came.append(number)
        if first:
            threading.Thread(target=self._remind, args=(number,), daemon=True).start()
        if first or now - self._last > AGAIN:
            self._last = now
            raise KeyboardInterrupt

    def _remind(self, number: int) -> None:
        while not self._done.wait(AGAIN):
            with self._sending:
                if not self._done.is_set():
                    self._reminded = True
                    os.kill(os.getpid(), number)

    def end(self) -> None:
        """No reminder comes after this: the next signal meets another handler."""
        with self._sending:
            self._done.set()


def _interrupted() -> bool:
    """Whether the main thread is at work because of a ``KeyboardInterrupt``: closing files, or saying so."""
    error, seen = sys.exc_info()[1], set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


@contextmanager
def ending_signals() -> Iterator[list[int]]:
    """Turns the first signal into a ``KeyboardInterrupt``; gives a list of those that came.

    The list tells also where the exception was changed on its way, as imports of compiled modules do.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop.came
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    # What the caller ignores, as nohup does, stays ignored.
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN and handler is not None]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield stop.came
    finally:
        stop.end()
        for number in taken:
            signal.signal(number, before[number])
