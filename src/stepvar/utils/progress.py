"""A progress bar on the terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count as count_from
from typing import Any


@contextmanager
def bar(title: str, total: int | None, shown: bool, time_left: bool = False) -> Iterator[Callable[..., None]]:
    """Gives a function that moves the bar by one step; its argument, if any, sets a total that is known late.

    Args:
        time_left: whether the bar says how long it will take, for steps that take equally long.
    """
    with _updates(title, total, "?" if total is None else total, shown, time_left) as update:
        yield lambda known_total=total: update(advance=1, total=known_total, count=known_total)


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
    if not (shown and sys.stderr.isatty()):
        yield lambda **changes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # Drawn only when moved: a refreshing thread would take time from what is being measured.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[count]}", style="progress.download"),
        *([TimeRemainingColumn()] if time_left else []),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        speed_estimate_period=24 * 3600.0,  # by all steps so far: those of large videos take minutes
    )
    task, calls = progress.add_task(title, total=total, done=0, count=count), count_from(1)
    with progress:
        progress.refresh()
        yield lambda **changes: progress.update(task, done=next(calls), refresh=True, **changes)
