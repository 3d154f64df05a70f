"""Fast inference for visual autoregressive (next-scale prediction) models."""

from __future__ import annotations

from stepvar.utils.version import __version__ as __version__

TYPE_CHECKING = False  # nothing is imported here, so that the command line answers Ctrl-C from its first moment
if TYPE_CHECKING:
    from typing import Any

    from stepvar.media.video import Video as Video
    from stepvar.methods import *  # noqa: F403
    from stepvar.output import Output as Output
    from stepvar.pipeline import Pipeline as Pipeline
    from stepvar.utils.device import deterministic as deterministic

_HOMES = {"Output": "output", "Pipeline": "pipeline", "Video": "media.video", "deterministic": "utils.device"}
"""The modules of the public names; classes that are not listed are methods."""


def __getattr__(name: str) -> Any:
    # PyTorch takes a second or two to import: only when a name that needs it is asked for.
    home = _HOMES.get(name, "methods" if name[:1].isupper() else None)
    from importlib import import_module

    module = home and import_module(f"stepvar.{home}")
    if not hasattr(module, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


def __dir__() -> list[str]:
    from importlib import import_module

    classes = (name for name in dir(import_module("stepvar.methods")) if name[:1].isupper())
    return sorted(["__version__", *_HOMES, *classes])
