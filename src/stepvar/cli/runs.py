"""What both kinds of ``stepvar eval`` write and say of a run in a folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar import __version__

if TYPE_CHECKING:
    from stepvar.evaluation.folder import RunFolder
    from stepvar.methods import Method
    from stepvar.pipeline import Pipeline


def describe_model(pipe: Pipeline, dtype: str, quantization: str | None = None) -> dict[str, str]:
    """What a run is made with, so that it goes on with the same only."""
    facts = {"stepvar": __version__, "model": pipe.name, "device": str(pipe.device), "dtype": dtype}
    return facts if quantization is None else facts | {"quantization": quantization}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line says for both kinds.

    Attributes:
        out: folder of the run.
        limit: only so many prompts or images.
        methods: with their labels.
        settings: those of the pipeline that were given.
        batch: images at once.
        command: the whole line, for the report.
    """

    out: Path
    limit: int | None
    methods: Sequence[tuple[str, Method]]
    settings: dict[str, Any]
    batch: int
    dtype: str
    quantization: str | None
    command: str
    quiet: bool


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
