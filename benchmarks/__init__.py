"""Measurements of the library; each module says the command that repeats it."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


def command_line(spec: ModuleSpec | None) -> str:
    """The command that runs a benchmark again as it was run, as it would be typed in a checkout.

    Paths of this machine say nothing to a reader: results go to ``runs/``, what is read is ``PATH/TO/`` its name.

    Args:
        spec: the module's ``__spec__``.
    """
    name = spec.name.removesuffix(".__main__") if spec else sys.argv[0]
    words = ["python", "-m", name]
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        words.append(shlex.quote(_anywhere(Path(word), "runs" if before == "--out" else "PATH/TO", word)))
    return " ".join(words)


def _anywhere(path: Path, folder: str, word: str) -> str:
    """A word of a command, without the folders of this machine if it is an absolute path."""
    if not path.is_absolute():
        return word
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else f"{folder}/{path.name}"
