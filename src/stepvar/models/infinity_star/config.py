"""Shapes of the InfinityStar family: the released sizes and whatever smaller ones have the same structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepvar.core.tokens import Grid
from stepvar.errors import CheckpointError
from stepvar.models.configs import ModelConfig
from stepvar.models.infinity_star.tokenizer import VideoTokenizerConfig

Sides = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class InfinityStarConfig(ModelConfig):
    """The transformer, how it runs through a video, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks; ``block_chunks`` only groups them in the names of the weights (1: they are not grouped).
        width: channels C.
        heads: heads of the queries.
        kv_heads: heads of the keys and values, each of which serves ``heads / kv_heads`` of the queries.
        ffn_ratio: width of the feed-forward layers over ``width``, before rounding to a multiple of 256.
        text_channels: channels of the text features.
        text_maxlen: most text tokens per prompt, and rows of the learned null text.
        semantic_bits: bits of a token at the coarse scales.
        semantic_scales: how many scales of a clip are coded in these bits; the others in all ``token_channels``.
        image_repetitions: how often each scale of the first clip runs, which is a still image.
        video_repetitions: how often each scale of a later clip runs.
        clip_frames: latent frames of a clip.
        latents: how many latent frames a video may have, beside the one of a still image.
        fps: frames per second.
        resolution: name of the native schedule.
        prompt_prefix: goes before the prompt of a video; ``{seconds}`` stands for its length.
        continues_videos: whether the model generates the next clip of a video, from cached features of the ones
            before, and nothing else.
        shapes: the (h, w) of each scale, one such list per image shape, where they are not the published ones.
    """

    tokenizer_type = VideoTokenizerConfig
    depth: int
    width: int
    heads: int
    kv_heads: int
    tokenizer: VideoTokenizerConfig
    ffn_ratio: float = 4.0
    block_chunks: int = 1
    text_channels: int = 2048
    text_maxlen: int = 512
    semantic_bits: int = 16
    semantic_scales: int = 11
    image_repetitions: tuple[int, ...] = (3,) * 14
    video_repetitions: tuple[int, ...] = (3,) * 12 + (2, 1)
    clip_frames: int = 20
    latents: tuple[int, ...] = (5, 9, 13, 17, 21, 41)
    fps: int = 16
    resolution: str = "0.40M"
    prompt_prefix: str = ""
    continues_videos: bool = False
    shapes: tuple[Sides, ...] = ()

    def __post_init__(self) -> None:
        if self.depth % self.block_chunks:
            raise CheckpointError(f"block_chunks={self.block_chunks}: must divide depth={self.depth}")
        self.check_heads(8)
        if self.heads % self.kv_heads:
            raise CheckpointError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if min(*self.image_repetitions, *self.video_repetitions) < 1:
            raise CheckpointError("image_repetitions and video_repetitions: every scale runs at least once")
        for latents in self.latents:
            if latents - 1 > self.clip_frames and (latents - 1) % self.clip_frames:
                raise CheckpointError(
                    f"latents={latents}: must be 1 plus a multiple of clip_frames={self.clip_frames}, or shorter"
                )

    @property
    def usual_latents(self) -> int:
        """Latent frames of a video whose length nobody states: one clip, or the longest that the model generates."""
        return min(max(self.latents, default=1), 1 + self.clip_frames)

    @property
    def kv_width(self) -> int:
        """Channels of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def ffn_width(self) -> int:
        return 256 * max(1, round(self.ffn_ratio * self.width / 256))

    @property
    def token_channels(self) -> int:
        """Channels d of a token's code."""
        return self.tokenizer.token_channels

    def bits_at(self, scale: int) -> int:
        """Bits that a token predicts at a scale of its clip."""
        return self.semantic_bits if scale < self.semantic_scales else self.token_channels

    @property
    def outputs(self) -> int:
        """Most logits per token: two for each bit."""
        return 2 * max(self.token_channels, self.semantic_bits if self.semantic_scales else 0)

    def latent_size(self, grid: Grid) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of the latent clip whose tokens are those of a grid."""
        return (self.token_channels, *grid.shape)


def _released(repetitions: tuple[int, ...], **more: Any) -> InfinityStarConfig:
    tokenizer = VideoTokenizerConfig()
    return InfinityStarConfig(
        36,
        4096,
        32,
        8,
        tokenizer,
        block_chunks=6,
        video_repetitions=(3,) * 12 + repetitions,
        prompt_prefix="<<<t={seconds}s>>>",
        **more,
    )


CONFIGS: dict[str, InfinityStarConfig] = {
    "480p": _released((2, 1)),
    "720p": _released(
        (2, 1, 1),
        semantic_scales=12,
        image_repetitions=(3,) * 15,
        latents=(5, 9, 13, 17, 21),
        resolution="0.90M",
    ),
    "interact": _released((2, 1), image_repetitions=(3,) * 12 + (2, 1), latents=(21,), continues_videos=True),
}
"""Released sizes by variant name."""
