"""How this thread asks the Hugging Face hub, for every download of a model: its cache, its token, or no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_options: ContextVar[dict[str, Any]] = ContextVar("hub_options", default={})  # noqa: B039  (never changed in place)


@contextmanager
def hub_access(
    cache_dir: str | Path | None = None, token: str | bool | None = None, local_files_only: bool = False
) -> Iterator[None]:
    """Within it downloads use these; None: what ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` say."""
    chosen: dict[str, Any] = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
    if token is not None:
        chosen["token"] = token
    if local_files_only:
        chosen["local_files_only"] = True
    before = _options.set(_options.get() | chosen)
    try:
        yield
    finally:
        _options.reset(before)


def hub_options() -> dict[str, Any]:
    """The keyword arguments that a call of ``huggingface_hub`` is to be given."""
    return dict(_options.get())
