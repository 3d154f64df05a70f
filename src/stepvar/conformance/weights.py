"""Weights from a rule: any two programs that know the names and shapes of a model give it the same numbers."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

EXCLUDED = (
    "zero_k_bias",
    "lvl_1L",
    "attn_bias_for_masking",
    "lfq.mask",
    "ema_vocab_hit_SV",
    "lfq_semantic.mask",
    "lfq_detail.mask",
)
"""Endings of the names of constants, which the rule leaves at zero."""

_HALF = ("lvl_embed.weight", "pos_start", "pos_1LC")
_UNIT = ("cfg_uncond", "class_emb.weight", ".mat_q", "quantize.embedding.weight")


Spread = Callable[[str, Sequence[int]], tuple[float, float]]
"""From a weight's name and shape to the mean and the standard deviation of its numbers."""


def rule_weight(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The weight of this name and shape, in float32 on the CPU.

    Normal numbers from a generator that starts at CRC-32 of the name plus the seed, brought to a range in which
    an untrained model behaves like a trained one: gates are open, some attention scales exceed their limit.
    """
    if name.endswith(EXCLUDED):
        return torch.zeros(tuple(shape))
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    normal = generator.standard_normal(tuple(shape), dtype=np.float32)
    offset, factor = _range(name, shape)
    # The rule is stated in float32: in double precision the last bits would differ.
    return torch.from_numpy(np.asarray(np.float32(offset) + np.float32(factor) * normal))


def _range(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a weight."""
    if name.endswith("scale_mul_1H11"):
        return 2.5, 1.5
    if name.endswith("ada_gss"):
        return 0.0, 0.3
    if name.endswith(_HALF):
        return 0.0, 0.5
    if name.endswith(_UNIT):
        return 0.0, 1.0
    if len(shape) == 1:
        return (1.0 if name.endswith(".weight") else 0.0), 0.05
    return 0.0, 1.0 / math.sqrt(math.prod(shape[1:]))


def star_weight(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The weight of this name and shape by the rule of the InfinityStar goldens, in float32 on the CPU."""
    return _wide_weight(name, shape, seed, _star_range)


def _wide_weight(name: str, shape: Sequence[int], seed: int, spread: Spread) -> Tensor:
    """Like :func:`rule_weight`, but the normal numbers are made in double precision."""
    if name.endswith(EXCLUDED):
        return torch.zeros(tuple(shape))
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    normal = generator.standard_normal(size=tuple(shape)).astype(np.float32)
    offset, factor = spread(name, shape)
    return torch.from_numpy(np.asarray(np.float32(offset) + np.float32(factor) * normal))


_STAR_TOKENIZER = ("encoder.", "decoder.", "proj_", "scale_learnable_parameters")


def _star_range(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a weight of InfinityStar."""
    tokenizer = name.startswith(_STAR_TOKENIZER)
    if name.endswith(
        (".gamma", "scale_learnable_parameters", "conv_y.conv.bias", "norm.weight", "hidden_sates.weight")
    ):
        return 1.0, 0.05
    if name == "cfg_uncond":
        return 0.0, 0.5
    if name == "sos_token":
        return 0.0, 0.02
    if name.endswith(".bias"):
        return 0.0, 0.05 if tokenizer else 0.1
    gain = {"decoder.conv_out.conv.weight": 0.3, "word_embed.weight": 4.0}.get(name, 1.0)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


Rule = Callable[[str, Sequence[int], int], Tensor]
"""(name, shape, seed) -> weight."""


def rule_weights(shapes: Mapping[str, Sequence[int]], seed: int, rule: Rule = rule_weight) -> dict[str, Tensor]:
    """The weights of all names."""
    return {name: rule(name, shape, seed) for name, shape in shapes.items()}


def fill_by_rule(module: nn.Module, seed: int, rule: Rule = rule_weight) -> None:
    """Overwrites all parameters and buffers of a module, in place."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict(rule_weights(shapes, seed, rule))


_HART: tuple[tuple[str, float, float], ...] = (
    (r".*(ln_wo_grad|in_ln)\.weight|(decoder|context)_norm\.weight|.*\.norm.*\.weight", 1.0, 0.05),
    (r".*scale_mul_1H11", 1.0, 0.1),
    (r".*scale_shift_table", 0.0, 0.3),
    (r"lvl_embed\.weight", 0.0, 0.5),
    (r"quantize\.embedding\.weight", 0.0, 1.0),
    (r".*(\.bias|q_bias|v_bias)", 0.0, 0.1),
    (r"pos_start|pos_1LC", 0.0, 0.3),
)
"""Patterns of names, means and standard deviations; the first that fits counts."""

_HART_GAINS: dict[str, float] = {
    "decoder.conv_out.weight": 0.3,
    "word_embed.weight": 4.0,
    "head_nm.ada_lin.1.weight": 0.3,
    "context_embed.weight": 0.5,
    "head.weight": 2.0,
    "diffloss.net.final_layer.linear.weight": 0.5,
}


def hart_weight(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The weight of this name and shape by the rule of the HART goldens, in float32 on the CPU."""
    return _wide_weight(name, shape, seed, _hart_range)


def _hart_range(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a weight of HART."""
    for pattern, mean, deviation in _HART:
        if re.fullmatch(pattern, name):
            return mean, deviation
    return 0.0, _HART_GAINS.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))
