"""Shapes of the HART family, from the configuration files of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from stepvar.errors import CheckpointError, UsageError
from stepvar.models.configs import PublishedConfig
from stepvar.models.var.config import SquareConfig, VQConfig

PATCH_NUMS = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
"""Sides of the grids of the released model."""


@dataclass(frozen=True)
class HARTConfig(SquareConfig):
    """The transformer with its diffusion head, and the tokenizer that it was trained with.

    Attributes:
        depth: blocks.
        width: channels C.
        heads: attention heads.
        patch_nums: side of each scale's square grid.
        context_tokens: text tokens T, padding counted: the first scale runs on all of them.
        context_channels: channels of the text features.
        positions: where tokens get their places from: ``"rotary"``, or ``"learned"`` tables, with which come plain
            layer norms.
        unit_attention: whether queries and keys have unit length and a learned scale.
        feed_forward: ``"swiglu"`` or ``"gelu"``.
        modulation: what the text does to the blocks beside being attended to: one vector to which each block adds a
            table (``"shared"``), a projection per block (``"own"``), nothing (``"none"``).
        pooling: how the text becomes one vector for a projection per block: the ``"max"`` of all tokens, padding
            counted, or the ``"mean"`` of the words.
        levels: what tells the scales apart: the ``"sinusoid"`` of their number through two layers, or a ``"table"``.
        context_norm: whether text features are normalised.
        mlp_ratio: hidden channels of the feed-forward layers by channels, before rounding.
        diffusion_width, diffusion_depth: channels and blocks of the diffusion head.
        diffusion_steps: steps of its sampler.
    """

    depth: int
    width: int
    heads: int
    tokenizer: VQConfig
    patch_nums: tuple[int, ...] = PATCH_NUMS
    context_tokens: int = 300
    context_channels: int = 1536
    positions: Literal["rotary", "learned"] = "rotary"
    unit_attention: bool = False
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    modulation: Literal["shared", "own", "none"] = "shared"
    pooling: Literal["max", "mean"] = "max"
    levels: Literal["sinusoid", "table"] = "sinusoid"
    context_norm: bool = True
    mlp_ratio: float = 4.0
    diffusion_width: int = 1024
    diffusion_depth: int = 6
    diffusion_steps: int = 8

    def __post_init__(self) -> None:
        self.check_heads(4)
        if len(self.patch_nums) < 2 or min(self.patch_nums) < 1 or self.patch_nums[0] != 1:
            raise CheckpointError(f"patch_nums={self.patch_nums}: needs the side of each scale, of the first one 1")
        if self.context_tokens < 1:
            raise CheckpointError(f"context_tokens={self.context_tokens}: must be at least 1")
        if not 2 <= self.diffusion_steps <= 1000:
            raise CheckpointError(f"diffusion_steps={self.diffusion_steps}: must be between 2 and 1000")
        if self.positions == "learned" and self.context_norm:
            raise CheckpointError("context_norm: is not possible with learned positions")

    @property
    def ffn_width(self) -> int:
        """Hidden channels of the feed-forward layers; gated ones are rounded up to a multiple of 256."""
        if self.feed_forward == "gelu":
            return round(self.width * self.mlp_ratio)
        return int((self.width * self.mlp_ratio * 2) / 3 + 255) // 256 * 256

    @property
    def prefix(self) -> int:
        """Tokens that the first scale runs beside the one of its grid."""
        return self.context_tokens - 1

    def check_context(self, name: str, features: Tensor) -> None:
        """Raises a UsageError unless text features (B, T, C) have the size that the model reads."""
        tokens, channels = features.shape[1:]
        if (tokens, channels) != (self.context_tokens, self.context_channels):
            raise UsageError(
                f"{name} of {tokens} tokens and {channels} channels: this model reads exactly "
                f"{self.context_tokens} tokens, padding counted, of {self.context_channels} channels"
            )

    @classmethod
    def published(cls, transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> HARTConfig:
        """Reads the ``config.json`` of a published transformer and that of its tokenizer.

        Raises:
            CheckpointError: if they lack a size, or ask for something that is not supported.
        """
        given = PublishedConfig(transformer, "transformer")
        for name, value in _FIXED_TRANSFORMER.items():
            given.must_be(name, value)
        disabled, shared = given.get("disable_aln", False), given.get("shared_aln", False)
        found: dict[str, Any] = dict(
            depth=given["depth"],
            width=given["embed_dim"],
            heads=given["num_heads"],
            tokenizer=asdict(published_tokenizer(tokenizer)),
            patch_nums=given["patch_nums"],
            context_tokens=given["context_token"],
            context_channels=given["context_dim"],
            positions=given.word("attn_type", "gpt2", {"llama": "rotary", "gpt2": "learned"}),
            unit_attention=bool(given.get("attn_l2_norm", False)),
            feed_forward=given.word("mlp_type", "gpt2", {"llama": "swiglu", "gpt2": "gelu"}),
            modulation="own" if not disabled else "shared" if shared else "none",
            pooling=given.word("sep_aln_pooling_mode", "max", {"max": "max", "avg": "mean"}),
            levels="sinusoid" if given.get("use_timestep_embed", False) else "table",
            context_norm=bool(given.get("use_context_norm", False)),
            mlp_ratio=given.get("mlp_ratio", 4.0),
            diffusion_width=given.get("diff_width", 1024),
            diffusion_depth=given.get("diff_depth", 6),
            diffusion_steps=int(given.get("num_sampling_steps", 8)),
        )
        return cls.from_dict(found)


def published_tokenizer(values: Mapping[str, Any]) -> VQConfig:
    """Reads the ``config.json`` of a published tokenizer; what it does not say is as in the released one.

    Raises:
        CheckpointError: if it asks for something that is not supported.
    """
    given = PublishedConfig(values, "tokenizer")
    for name, value in _FIXED_TOKENIZER.items():
        given.must_be(name, value)
    given.word("quantizer_type", "var", {"var": "var", "var_hybrid": "var_hybrid"})
    convs = given.get("share_quant_resi", 4)
    if convs < 2:
        raise CheckpointError(f"tokenizer: share_quant_resi={convs} is not supported; only 2 and more")
    return VQConfig(
        vocabulary=given.get("vocab_size", 4096),
        channels=given.get("z_channels", 32),
        base_channels=given.get("ch", 160),
        multipliers=tuple(given.get("ch_mult", (1, 1, 2, 2, 4))),
        convs=convs,
        residual=given.get("quant_resi", 0.5),
    )


_FIXED_TRANSFORMER: dict[str, Any] = {"use_cross_attn": False, "sampler": "iddpm", "norm_eps": 1e-6}
_FIXED_TOKENIZER: dict[str, Any] = {"using_znorm": False, "quant_conv_ks": 3, "disable_quant_resi": False}


RELEASED = HARTConfig(depth=24, width=1536, heads=24, tokenizer=VQConfig())
"""The released 0.7B model as far as its configuration could be inferred; its own file decides."""
