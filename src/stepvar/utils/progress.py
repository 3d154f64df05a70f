"""A progress bar on the terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


@contextmanager
def bar(title: str, total: int | None, shown: bool, time_left: bool = False) -> Iterator[Callable[..., None]]:
    """Gives a function that moves the bar by one step; its argument, if any, sets a total that is known late.

    Args:
        time_left: whether the bar says how long it will take, for steps that take equally long.
    """
    if not is_shown(shown):
        yield lambda known_total=None: None
        return
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    progress = _progress(MofNCompleteColumn(), *([TimeRemainingColumn()] if time_left else []))
    task = progress.add_task(title, total=total)
    with progress:
        progress.refresh()
        yield lambda known_total=None: progress.update(task, advance=1, total=known_total, refresh=True)


@contextmanager
def scale_bar(
    shown: bool, weights: Mapping[int, float], also: Callable[[Any, Any], None] | None
) -> Iterator[Callable[[Any, Any], None]]:
    """A bar over the passes of a generation as its callback, which calls ``also``, too.

    Args:
        weights: what each pass takes beside the others, by its index, for the time that is left.
    """
    with _weighted_bar(weights) if is_shown(shown) else nullcontext(_ignore) as advance:

        def on_scale_end(step: Any, state: Any) -> None:
            advance(weights.get(step.index, 0.0))
            if also is not None:
                also(step, state)

        yield on_scale_end


def _ignore(weight: float) -> None:
    """Moves no bar."""


def is_shown(asked: bool) -> bool:
    """Bars are for terminals."""
    return asked and sys.stderr.isatty()


@contextmanager
def _weighted_bar(weights: Mapping[int, float]) -> Iterator[Callable[[float], None]]:
    from rich.progress import TextColumn, TimeRemainingColumn

    progress = _progress(TextColumn("{task.fields[done]}/{task.fields[count]}"), TimeRemainingColumn())
    task = progress.add_task("scales", total=sum(weights.values()), done=0, count=len(weights))
    done = 0

    def advance(weight: float) -> None:
        nonlocal done
        done += 1
        progress.update(task, advance=weight, done=done, refresh=True)

    with progress:
        progress.refresh()
        yield advance


def _progress(*columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Drawn only when moved: a refreshing thread would take time from what is being measured.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        speed_estimate_period=24 * 3600.0,  # by all steps so far: those of large videos take minutes
    )
