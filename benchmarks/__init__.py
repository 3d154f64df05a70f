"""Measurements of the library; each module says the command that repeats it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec


def command_line(spec: ModuleSpec | None) -> str:
    """The command that runs a benchmark again as it was run; ``spec`` is the module's ``__spec__``."""
    name = spec.name.removesuffix(".__main__") if spec else sys.argv[0]
    return " ".join(["python", "-m", name, *sys.argv[1:]])
