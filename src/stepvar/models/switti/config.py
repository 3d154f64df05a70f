"""Shapes of the Switti family, from the configuration files of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import CheckpointError
from stepvar.models.configs import PublishedConfig
from stepvar.models.hart.config import PATCH_NUMS as PATCH_NUMS_1024
from stepvar.models.hart.config import published_tokenizer
from stepvar.models.var.config import PATCH_NUMS as VAR_PATCH_NUMS
from stepvar.models.var.config import SquareConfig, VQConfig

PATCH_NUMS: dict[int, tuple[int, ...]] = {**VAR_PATCH_NUMS, 1024: PATCH_NUMS_1024}
"""Sides of the grids of the models, by the side of their images."""


@dataclass(frozen=True)
class SwittiConfig(SquareConfig):
    """The transformer, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks.
        width: channels C.
        heads: attention heads.
        patch_nums: side of each scale's square grid.
        cached: whether a scale attends to all earlier ones and itself, as in VAR, or to itself alone (published:
            ``use_ar``).
        crop_condition: whether size and crop of the training images are a condition (``use_crop_cond``).
        text_channels: channels of the text features.
        pooled_channels: channels of the pooled text.
        rope_theta: base of the frequencies of rotary positions.
        rope_size: coordinate of the last row and column in every grid.
    """

    depth: int
    width: int
    heads: int
    patch_nums: tuple[int, ...]
    cached: bool = False
    crop_condition: bool = True
    text_channels: int = 2048
    pooled_channels: int = 1280
    rope_theta: float = 10000.0
    rope_size: float = 128.0
    tokenizer: VQConfig = field(default_factory=VQConfig)

    def __post_init__(self) -> None:
        self.check_heads(4)
        if self.width % 8:
            raise CheckpointError(f"width={self.width}: must be a multiple of 8")
        if not self.patch_nums or min(self.patch_nums) < 1:
            raise CheckpointError(f"patch_nums={self.patch_nums}: needs the side of each scale, 1 or more")

    @property
    def ffn_width(self) -> int:
        """Hidden channels of the feed-forward layers."""
        return int(self.width * 8 / 3)

    @property
    def schedule(self) -> ScaleSchedule:
        return replace(super().schedule, kv_scope="all" if self.cached else "none")

    @classmethod
    def published(cls, transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> SwittiConfig:
        """Reads the ``config.json`` of a published transformer and that of its tokenizer.

        Raises:
            CheckpointError: if they ask for something that is not supported.
        """
        given = PublishedConfig(transformer, "transformer")
        given.must_be("rope", True)
        given.must_be("use_swiglu_ffn", True)
        depth, pixels = given.get("depth", 30), given.get("reso", 512)
        if pixels not in PATCH_NUMS:
            raise CheckpointError(
                f"transformer: reso={pixels!r} is not supported; only {', '.join(map(str, PATCH_NUMS))}"
            )
        if not isinstance(depth, int):
            raise CheckpointError(f"transformer: depth={depth!r} must be a whole number; fetch it again")
        found = dict(
            depth=depth,
            width=64 * depth,
            heads=depth,
            patch_nums=PATCH_NUMS[pixels],
            cached=given.get("use_ar", False),
            crop_condition=given.get("use_crop_cond", True),
            rope_theta=float(given.get("rope_theta", 10000)),
            rope_size=float(given.get("rope_size", 128)),
            tokenizer=asdict(published_tokenizer(tokenizer)),
        )
        return cls.from_dict(found)


def _released(pixels: int, cached: bool) -> SwittiConfig:
    return SwittiConfig(30, 1920, 30, PATCH_NUMS[pixels], cached)


CONFIGS: dict[str, SwittiConfig] = {
    f"2.5b-{pixels}{'-ar' if cached else ''}": _released(pixels, cached)
    for pixels in (512, 1024)
    for cached in (False, True)
}
"""Released models by variant name; their own files decide."""
