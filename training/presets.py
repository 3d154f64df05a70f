"""Shapes and amounts of a training, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepvar.models.infinity import InfinityConfig, TokenizerConfig
from training.captions import SYNONYMS, VOCABULARY

RATIOS: dict[float, float] = {1.0: 0.68, 1.5: 0.08, 0.666: 0.08, 1.333: 0.08, 0.75: 0.08}
"""Height over width -> share of the training batches."""


@dataclass(frozen=True)
class Preset:
    """A model's shape and the batches it is trained with.

    Attributes:
        model: the transformer and tokenizer.
        text: arguments of the text encoder.
        tokenizer_batch: images per step of the tokenizer.
        prefixes: (scales, batch size) of the short transformer steps, which learn the layout cheaply.
        whole_batch: batch size of the steps that see all scales.
        rendered: scenes rendered at a time; small batches would leave a GPU waiting for launches.
        pool: encoded scenes held in memory; ``rendered`` new ones replace old ones every ``refresh`` steps.
    """

    model: InfinityConfig
    text: dict[str, Any] = field(default_factory=dict)
    tokenizer_batch: int = 64
    prefixes: tuple[tuple[int, int], ...] = ((6, 512), (7, 320))
    whole_batch: int = 80
    rendered: int = 512
    pool: int = 131072
    refresh: int = 8


def text_arguments(
    vocabulary: Sequence[str], synonyms: Mapping[str, str], width: int, layers: int, hidden: int
) -> dict[str, Any]:
    """The arguments of a :class:`~stepvar.text.WordEncoder`."""
    words = {"vocabulary": list(vocabulary), "synonyms": dict(synonyms)}
    return words | {"width": width, "layers": layers, "hidden": hidden}


def _text(width: int, layers: int, hidden: int) -> dict[str, Any]:
    return text_arguments(VOCABULARY, SYNONYMS, width, layers, hidden)


PRESETS: dict[str, Preset] = {
    "scenes": Preset(
        InfinityConfig(
            depth=8,
            width=256,
            heads=4,
            block_chunks=4,
            tokenizer=TokenizerConfig(code_bits=14, base_channels=32, multipliers=(1, 2, 3, 3), norm_groups=8),
            text_channels=256,
            text_maxlen=32,
            resolution="0.25M",
        ),
        _text(256, 2, 512),
    ),
    # Proves on a CPU in minutes that the recipe runs; its images are not good.
    "tiny": Preset(
        InfinityConfig(
            depth=2,
            width=128,
            heads=2,
            block_chunks=2,
            tokenizer=TokenizerConfig(code_bits=14, base_channels=16, multipliers=(1, 2, 3, 3), norm_groups=8),
            text_channels=128,
            text_maxlen=32,
            resolution="0.06M",
        ),
        _text(128, 1, 256),
        tokenizer_batch=8,
        prefixes=((5, 32),),
        whole_batch=8,
        rendered=32,
        pool=256,
    ),
}
