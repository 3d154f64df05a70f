"""Who may use the pipeline: one generation at a time, in the order in which they came, and not too many waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event

from stepvar.errors import StepvarError

GLANCE = 0.2
"""Seconds between two looks at whether a request that waits was cancelled."""


class Cancelled(StepvarError):
    """Whoever asked for a generation does not want it any more."""

    def __init__(self) -> None:
        super().__init__("Cancelled.")


class BusyError(StepvarError):
    """As many requests wait as may."""


class Turns:
    """A line in front of the pipeline.

    Args:
        most: how many may wait behind the one that runs.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._changed = Condition()
        self._line: list[object] = []

    @property
    def length(self) -> int:
        """How many there are, the one that runs included."""
        return len(self._line)

    @contextmanager
    def turn(self, stop: Event, on_wait: Callable[[int], None] = lambda ahead: None) -> Iterator[None]:
        """Waits until it is one's turn, which lasts as long as the context.

        Args:
            stop: set when the request is cancelled.
            on_wait: told how many are ahead, at first and whenever that changes.

        Raises:
            BusyError: at once, if too many wait.
            Cancelled: while waiting.
        """
        ticket, told = object(), 0
        with self._changed:
            if len(self._line) > self.most:
                raise BusyError(f"{self.most} requests wait already, and no more may; try again in a while.")
            self._line.append(ticket)
        try:
            with self._changed:
                while ahead := self._line.index(ticket):
                    if ahead != told:
                        on_wait(told := ahead)
                    if stop.is_set():
                        raise Cancelled
                    self._changed.wait(GLANCE)
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()
