"""A progress bar on the terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepvar.plan import Step


@contextmanager
def bar(title: str, total: int | None, shown: bool, time_left: bool = False) -> Iterator[Callable[..., None]]:
    """Gives a function that moves the bar by one step; its argument, if any, sets a total that is known late.

    Args:
        time_left: whether the bar says how long it will take, for steps that take equally long.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda known_total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Drawn only when moved: a refreshing thread would take time from what is being measured.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TimeRemainingColumn()] if time_left else []),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    task = progress.add_task(title, total=total)
    with progress:
        progress.refresh()
        yield lambda known_total=None: progress.update(task, advance=1, total=known_total, refresh=True)


@contextmanager
def scale_bar(
    shown: bool, scales: int, also: Callable[[Step, Any], None] | None
) -> Iterator[Callable[[Step, Any], None]]:
    """A bar over the scales of a generation as its callback, which calls ``also``, too."""
    with bar("scales", scales, shown) as advance:

        def on_scale_end(step: Step, state: Any) -> None:
            advance()
            if also is not None:
                also(step, state)

        yield on_scale_end
