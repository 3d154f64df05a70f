"""Shapes and amounts of the training of "wardrobe", by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity import InfinityConfig, TokenizerConfig, schedule_for
from training.presets import text_arguments
from training.wardrobe.captions import SYNONYMS, vocabulary


@dataclass(frozen=True)
class WardrobePreset:
    """A model's shape and the batches it is trained with; batches are those of one process.

    Attributes:
        model: the transformer and tokenizer.
        text: arguments of the text encoder.
        tokenizer_ratios, ratios: height over width -> share of the steps of tokenizer and transformer.
        tokenizer_batch: pictures per step of the tokenizer.
        judged: channels of the discriminator.
        prefixes: (scales, batch) of the transformer's short steps.
        whole_batch: pictures per step that sees all scales.
        pool: encoded pictures held per aspect ratio; ``drawn`` new ones replace old ones every ``refresh`` steps.
        hues: by how many degrees the hue of a training picture may be turned; 0 is taken for most.
        checked: held-out pictures per check.
    """

    model: InfinityConfig
    text: dict[str, Any] = field(default_factory=dict)
    tokenizer_ratios: tuple[tuple[float, float], ...] = ((1.0, 0.8), (1.333, 0.2))
    ratios: tuple[tuple[float, float], ...] = ((1.0, 0.5), (1.333, 0.4), (0.75, 0.1))
    tokenizer_batch: int = 16
    judged: int = 48
    prefixes: tuple[tuple[int, int], ...] = ((7, 96),)
    whole_batch: int = 24
    pool: int = 16384
    drawn: int = 64
    refresh: int = 6
    hues: tuple[float, ...] = (0.0, 40.0, 80.0, 120.0, 180.0, 240.0, 280.0, 320.0)
    checked: int = 80

    def schedule(self, ratio: float) -> ScaleSchedule:
        return schedule_for(self.model.resolution, ratio)

    def size(self, ratio: float) -> tuple[int, int]:
        """Height and width in pixels."""
        last, stride = self.schedule(ratio).grids[-1], self.model.stride
        return last.h * stride, last.w * stride


def _text(width: int, layers: int, hidden: int) -> dict[str, Any]:
    return text_arguments(vocabulary(), SYNONYMS, width, layers, hidden)


PRESETS: dict[str, WardrobePreset] = {
    "wardrobe": WardrobePreset(
        InfinityConfig(
            depth=12,
            width=384,
            heads=6,
            block_chunks=4,
            tokenizer=TokenizerConfig(code_bits=40, base_channels=48, multipliers=(1, 2, 4, 4), norm_groups=16),
            text_channels=256,
            text_maxlen=32,
            resolution="0.25M",
        ),
        _text(256, 2, 512),
    ),
    # Proves on a CPU in a minute that the recipe runs; its pictures are not good.
    "tiny": WardrobePreset(
        InfinityConfig(
            depth=2,
            width=64,
            heads=2,
            block_chunks=2,
            tokenizer=TokenizerConfig(code_bits=8, base_channels=8, multipliers=(1, 2, 2), norm_groups=4),
            text_channels=128,
            text_maxlen=32,
            resolution="0.06M",
        ),
        _text(128, 1, 128),
        tokenizer_batch=2,
        judged=8,
        prefixes=((4, 4),),
        whole_batch=2,
        pool=32,
        drawn=8,
        refresh=4,
        hues=(0.0, 120.0),
        checked=4,
    ),
}
