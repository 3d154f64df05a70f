"""Reading the configurations of the families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from stepvar.errors import CheckpointError

Config = TypeVar("Config")


def build_config(config: Callable[..., Config], tokenizer: Callable[..., Any], values: Mapping[str, Any]) -> Config:
    """A model's configuration, with its tokenizer's inside, from what ``dataclasses.asdict`` and JSON made of it.

    Raises:
        CheckpointError: for unknown or missing fields.
    """
    own = {name: _frozen(value) for name, value in values.items() if name != "tokenizer"}
    inner = {name: _frozen(value) for name, value in dict(values.get("tokenizer", {})).items()}
    for given, known in ((own, config), (inner, tokenizer)):
        unknown = set(given) - {field.name for field in fields(known)}  # type: ignore[arg-type]
        if unknown:
            raise CheckpointError(f"configuration: unknown fields {', '.join(sorted(unknown))}")
    try:
        return config(**own, tokenizer=tokenizer(**inner))
    except TypeError as error:
        raise CheckpointError(f"configuration: {error}") from None


def _frozen(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
