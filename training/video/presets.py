"""Shapes and amounts of a training of the video model, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stepvar.core.tokens import ScaleSchedule
from stepvar.models.infinity_star.codes import CodePass
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.schedules import code_passes, schedule_for
from stepvar.models.infinity_star.tokenizer import VideoTokenizerConfig
from training.presets import text_arguments
from training.video.captions import CLIP_SYNONYMS, CLIP_VOCABULARY


@dataclass(frozen=True)
class VideoPreset:
    """A video model's shape and the batches it is trained with.

    Attributes:
        model: the transformer and tokenizer.
        text: arguments of the text encoder.
        judge_batch, tokenizer_batch: clips per step of judge and tokenizer.
        batch: clips per step of the transformer.
        rendered: clips rendered at a time; small batches would leave a GPU waiting for launches.
        words: room for a caption, its end included.
        pool: encoded clips held in memory; ``rendered`` new ones replace old ones every ``refresh`` steps.
    """

    model: InfinityStarConfig
    text: dict[str, Any] = field(default_factory=dict)
    judge_batch: int = 128
    tokenizer_batch: int = 16
    batch: int = 128
    rendered: int = 128
    pool: int = 65536
    refresh: int = 20
    words: int = 16

    @property
    def schedule(self) -> ScaleSchedule:
        """The one schedule that the model is trained on: square, as long as it can be."""
        return schedule_for(self.model, 1.0, max(self.model.latents))

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels."""
        grid, tokenizer = self.schedule.grids[-1], self.model.tokenizer
        return tokenizer.frames(max(self.model.latents)), grid.h * tokenizer.stride, grid.w * tokenizer.stride

    @property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """Channels, side and frames where the tokenizer's convolutions cost most: its two finest levels."""
        frames, height, _ = self.clip_size
        fine, middle = self.model.tokenizer.channels[:2]
        return ((fine, height, frames), (middle, height // 2, (frames + 1) // 2))

    @property
    def passes(self) -> list[list[CodePass]]:
        """Per clip of the schedule its passes: grids and bits."""
        return code_passes(self.model, self.schedule)


def _text(width: int, layers: int, hidden: int) -> dict[str, Any]:
    return text_arguments(CLIP_VOCABULARY, CLIP_SYNONYMS, width, layers, hidden)


def _square(*sides: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    return (tuple((side, side) for side in sides),)


PRESETS: dict[str, VideoPreset] = {
    "scenes-video": VideoPreset(
        InfinityStarConfig(
            depth=8,
            width=256,
            heads=4,
            kv_heads=2,
            ffn_ratio=2.0,
            tokenizer=VideoTokenizerConfig(
                channels=(24, 48, 48),
                halves_time=(True, True),
                blocks=1,
                decoder_blocks=2,
                middle_blocks=1,
                latent_channels=8,
                token_channels=32,
            ),
            text_channels=128,
            text_maxlen=32,
            semantic_bits=16,
            semantic_scales=4,
            image_repetitions=(1, 1, 1, 1, 1, 1, 2),
            video_repetitions=(1, 1, 1, 1, 1, 1, 1),
            clip_frames=4,
            latents=(5,),
            fps=8,
            resolution="96",
            shapes=_square(1, 2, 3, 4, 6, 8, 12),
        ),
        _text(128, 2, 256),
    ),
    # Proves on a CPU in a minute that the recipe runs; its clips are not good.
    "tiny": VideoPreset(
        InfinityStarConfig(
            depth=2,
            width=64,
            heads=2,
            kv_heads=1,
            ffn_ratio=4.0,
            tokenizer=VideoTokenizerConfig(
                channels=(8, 16, 16),
                halves_time=(True, True),
                blocks=1,
                decoder_blocks=1,
                middle_blocks=1,
                latent_channels=4,
                token_channels=12,
            ),
            text_channels=64,
            text_maxlen=32,
            semantic_bits=6,
            semantic_scales=2,
            image_repetitions=(1, 1, 2),
            video_repetitions=(2, 1, 1),
            clip_frames=2,
            latents=(3,),
            fps=8,
            resolution="32",
            shapes=_square(1, 2, 4),
        ),
        _text(64, 1, 128),
        judge_batch=16,
        tokenizer_batch=4,
        batch=16,
        rendered=32,
        pool=256,
    ),
}
