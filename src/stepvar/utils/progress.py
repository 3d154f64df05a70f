"""A progress bar on a terminal and in a notebook; elsewhere a line in the log from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count as count_from
from typing import TYPE_CHECKING, Any

from stepvar.utils.log import logger

if TYPE_CHECKING:
    from rich.console import Console

SILENCE = 30.0
"""Seconds between two lines of the log about one run."""


@contextmanager
def bar(title: str, total: int | None, shown: bool, time_left: bool = False) -> Iterator[Callable[..., None]]:
    """Gives a function that moves the bar by one step; its argument, if any, sets a total that is known late.

    Args:
        time_left: whether the bar says how long it will take, for steps that take equally long.
    """
    with _updates(title, total, _count(total), shown, time_left) as update:
        yield lambda known_total=total: update(advance=1, total=known_total, count=_count(known_total))


def _count(total: int | None) -> int | str:
    """What stands for the number of all steps, which may not be known."""
    return "?" if total is None else total


@contextmanager
def scale_bar(
    shown: bool, weights: Mapping[int, float], also: Callable[[Any, Any], None] | None
) -> Iterator[Callable[[Any, Any], None]]:
    """A bar over the passes of a generation as its callback, which calls ``also``, too.

    Args:
        weights: what each pass takes beside the others, by its index, for the time that is left.
    """
    with _updates("scales", sum(weights.values()), len(weights), shown, time_left=True) as update:

        def on_scale_end(step: Any, state: Any) -> None:
            update(advance=weights.get(step.index, 0.0))
            if also is not None:
                also(step, state)

        yield on_scale_end


@contextmanager
def _updates(
    title: str, total: float | None, count: int | str, shown: bool, time_left: bool
) -> Iterator[Callable[..., None]]:
    """Gives the ``update`` of a bar's task, which also counts the calls, out of ``count``."""
    place = _place() if shown else None
    if place is None:
        yield _log_updates(title, count) if shown else lambda **changes: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # Drawn only when moved: a refreshing thread would take time from what is being measured.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[count]}", style="progress.download"),
        *([TimeRemainingColumn()] if time_left else []),
        console=place,
        auto_refresh=False,
        transient=True,
        speed_estimate_period=24 * 3600.0,  # by all steps so far: those of large videos take minutes
    )
    task, calls = progress.add_task(title, total=total, done=0, count=count), count_from(1)
    with progress:
        progress.refresh()
        yield lambda **changes: progress.update(task, done=next(calls), refresh=True, **changes)


def _place() -> Console | None:
    """Where a bar is drawn: the terminal, a notebook that has widgets, or nowhere."""
    if _is_terminal(sys.stderr):
        from rich.console import Console

        return Console(stderr=True)
    if "IPython" not in sys.modules or find_spec("ipywidgets") is None:
        return None
    from rich.console import Console

    console = Console()
    return console if console.is_jupyter else None


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is one; services and windows without a console have none, or an object that only writes."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none, or closed
        return False


def _log_updates(title: str, count: int | str) -> Callable[..., None]:
    """Says how far a long run is, where no bar is shown."""
    said, calls = time.monotonic(), count_from(1)

    def update(**changes: Any) -> None:
        nonlocal said
        done = next(calls)
        if time.monotonic() - said >= SILENCE:
            said = time.monotonic()
            logger.info("%s: %d of %s", title, done, changes.get("count", count))

    return update
