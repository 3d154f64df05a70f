"""Weights from a rule: any two programs that know the names and shapes of a model give it the same numbers."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

EXCLUDED = (
    "zero_k_bias",
    "lvl_1L",
    "attn_bias_for_masking",
    "lfq.mask",
    "ema_vocab_hit_SV",
    "lfq_semantic.mask",
    "lfq_detail.mask",
)
"""Endings of the names of constants, which every rule leaves at zero."""


@dataclass(frozen=True)
class WeightRule:
    """Normal numbers from a generator that starts at the CRC-32 of a weight's name plus a seed.

    They are brought to a range in which an untrained model behaves like a trained one: gates are open, some attention
    scales exceed their limit. Other weights than those of the patterns have a mean of 0 and a standard deviation of 1
    over the square root of what a number of the output is a sum of.

    Attributes:
        patterns: of whole names, each with the mean and the standard deviation; the first that fits counts.
        gains: by name, factors on the standard deviation of the other weights.
        vectors: standard deviation of the other weights with one dimension; their mean is 1 in a ``.weight``.
        precision: of the normal numbers, before they are rounded to float32.
    """

    patterns: tuple[tuple[str, float, float], ...]
    gains: Mapping[str, float] = field(default_factory=dict)
    vectors: float | None = None
    precision: type[np.float32] | type[np.float64] = np.float64

    def __call__(self, name: str, shape: Sequence[int], seed: int) -> Tensor:
        """The weight of this name and shape, in float32 on the CPU."""
        if name.endswith(EXCLUDED):
            return torch.zeros(tuple(shape))
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
        normal = generator.standard_normal(tuple(shape), dtype=self.precision).astype(np.float32)
        mean, deviation = self._spread(name, shape)
        # The rules are stated in float32: in double precision the last bits would differ.
        return torch.from_numpy(np.asarray(np.float32(mean) + np.float32(deviation) * normal))

    def _spread(self, name: str, shape: Sequence[int]) -> tuple[float, float]:
        for pattern, mean, deviation in self.patterns:
            if re.fullmatch(pattern, name):
                return mean, deviation
        if len(shape) == 1 and self.vectors is not None:
            return float(name.endswith(".weight")), self.vectors
        return 0.0, self.gains.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))


INFINITY_RULE = WeightRule(
    patterns=(
        (r".*scale_mul_1H11", 2.5, 1.5),
        (r".*ada_gss", 0.0, 0.3),
        (r".*(lvl_embed\.weight|pos_start|pos_1LC)", 0.0, 0.5),
        (r".*(cfg_uncond|class_emb\.weight|\.mat_q|quantize\.embedding\.weight)", 0.0, 1.0),
    ),
    vectors=0.05,
    precision=np.float32,
)
"""Of the goldens of Infinity and VAR."""

STAR_RULE = WeightRule(
    patterns=(
        (r".*(\.gamma|scale_learnable_parameters|conv_y\.conv\.bias|norm\.weight|hidden_sates\.weight)", 1.0, 0.05),
        (r"cfg_uncond", 0.0, 0.5),
        (r"sos_token", 0.0, 0.02),
        (r"(encoder\.|decoder\.|proj_).*\.bias", 0.0, 0.05),
        (r".*\.bias", 0.0, 0.1),
    ),
    gains={"decoder.conv_out.conv.weight": 0.3, "word_embed.weight": 4.0},
)
"""Of the goldens of InfinityStar."""

HART_RULE = WeightRule(
    patterns=(
        (r".*(ln_wo_grad|in_ln)\.weight|(decoder|context)_norm\.weight|.*\.norm.*\.weight", 1.0, 0.05),
        (r".*scale_mul_1H11", 1.0, 0.1),
        (r".*scale_shift_table", 0.0, 0.3),
        (r"lvl_embed\.weight", 0.0, 0.5),
        (r"quantize\.embedding\.weight", 0.0, 1.0),
        (r".*(\.bias|q_bias|v_bias)", 0.0, 0.1),
        (r"pos_start|pos_1LC", 0.0, 0.3),
    ),
    gains={
        "decoder.conv_out.weight": 0.3,
        "word_embed.weight": 4.0,
        "head_nm.ada_lin.1.weight": 0.3,
        "context_embed.weight": 0.5,
        "head.weight": 2.0,
        "diffloss.net.final_layer.linear.weight": 0.5,
    },
)
"""Of the goldens of HART."""
