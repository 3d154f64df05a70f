"""The text encoder that a pipeline is loaded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepvar.checkpoints import LoadedModel
from stepvar.checkpoints.sources import Source
from stepvar.core.values import text
from stepvar.models.registry import FAMILIES
from stepvar.text import CachedEncoder, Encoder, OffloadableEncoder, check_source


def check_text_encoder(outline: Source, chosen: Encoder[Any] | str | Path | None) -> None:
    """Finds out whether the encoder asked for can be had, before the model is fetched or read."""
    if isinstance(chosen, str) and chosen == "auto":
        chosen = None if outline.text_encoder is not None else outline.family.text_encoder
    elif isinstance(chosen, str):
        text("text_encoder", chosen)
    here = all(path.exists() for path in outline.parts.values())  # else loading the model says what is missing
    if isinstance(chosen, (str, Path)) and here:
        check_source(chosen)


def encoder_behind_cache(encoder: Any) -> Any:
    return encoder.encoder if isinstance(encoder, CachedEncoder) else encoder


def own_text_encoder(
    loaded: LoadedModel, chosen: Encoder[Any] | str | Path | None, quantized: bool
) -> Encoder[Any] | None:
    """The encoder asked for, behind a cache of the last prompts; one that is loaded here may be quantised."""
    if chosen == "auto":
        chosen = loaded.text_encoder or FAMILIES[loaded.family].text_encoder
    if isinstance(chosen, (str, Path)):
        chosen = FAMILIES[loaded.family].encoder(chosen, loaded.model.config)
        if quantized and isinstance(chosen, OffloadableEncoder):
            chosen.quantize()
    return None if chosen is None else CachedEncoder(chosen)
