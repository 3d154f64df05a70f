"""What both kinds of ``stepvar eval`` write and say of a run in a folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stepvar import __version__

if TYPE_CHECKING:
    from stepvar.evaluation.folder import RunFolder
    from stepvar.pipeline import Pipeline


def describe_model(pipe: Pipeline, dtype: str, quantization: str | None = None) -> dict[str, str]:
    """What a run is made with, so that it goes on with the same only."""
    facts = {"stepvar": __version__, "model": pipe.name, "device": str(pipe.device), "dtype": dtype}
    return facts if quantization is None else facts | {"quantization": quantization}


@contextmanager
def resumable(out: Path, folder: RunFolder, quiet: bool) -> Iterator[None]:
    """Says, where the user interrupts a run, what is done and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:
            print(f"{out}: {len(folder.rows)} images are done; the same command goes on")
        raise


def say_finished(out: Path) -> None:
    """The last line of a run."""
    print(f"{out}: the results; 'stepvar report {shlex.quote(str(out))}' makes a page of them")
