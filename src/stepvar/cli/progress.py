"""A progress bar on the terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepvar.models.infinity.model import InfinityState
    from stepvar.plan import Step


@contextmanager
def bar(title: str, total: int | None, quiet: bool) -> Iterator[Callable[[int | None], None]]:
    """Gives a function that moves the bar by one step; its argument sets the total once that is known."""
    if quiet or not sys.stderr.isatty():
        yield _stand_still
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # Drawn only when moved: a refreshing thread would take time from what is being measured.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    task = progress.add_task(title, total=total)

    def advance(known_total: int | None = None) -> None:
        progress.update(task, advance=1, total=known_total, refresh=True)

    with progress:
        yield advance


def _stand_still(known_total: int | None = None) -> None:
    pass


@contextmanager
def scale_bar(quiet: bool) -> Iterator[Callable[[Step, InfinityState], None]]:
    """A bar over the scales of a generation, as its callback."""
    with bar("scales", None, quiet) as advance:
        yield lambda step, _: advance(step.plan.scales)
