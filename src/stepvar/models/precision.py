"""Which part of a model computes in which number format.

Weights decide: a module casts its input to the format of its weights (:func:`for_weight`), and a policy says in
one table per family in which format each weight is kept. Nothing runs under autocast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stepvar.core.values import dtype_of
from stepvar.errors import UsageError
from stepvar.kernels.linear import Quantization, check_quantization

FORMATS = (torch.float32, torch.bfloat16, torch.float16)

Part = Literal["blocks", "residual", "head", "tokenizer", "exact"]

CacheName = Literal["int8"]

Policy = tuple[tuple[str, Part], ...]
"""Patterns of the names of weights and the part that each belongs to; the first that fits counts."""


def parts_policy(transformer: Policy, tokenizer: Policy) -> Policy:
    """The policy of a whole model from those of its two parts."""
    parts = {"transformer": transformer, "tokenizer": tokenizer}
    return tuple((rf"{name}\.{pattern}", part) for name, policy in parts.items() for pattern, part in policy)


@dataclass(frozen=True)
class Precision:
    """The number format of each part of a model.

    Attributes:
        blocks: matrix products and attention inside the blocks, their weights, and their keys and values.
        residual: the residual stream, all normalisations and modulations, the condition and the embeddings.
        head: the last normalisation and the projection to logits.
        cache: how keys and values are stored between passes: "int8", each head of each token with a scale of its own;
            None: in the blocks' format.
        tokenizer: convolutions of encoder and decoder; statistics of the normalisations are float32 in any format.
        quantization: how the weights of the products inside the blocks are stored, "fp8" or "int8"; None: in the
            blocks' format. See :mod:`stepvar.models.quantization`.

    Codes, codebook, the sum of codes, its resampling, rotary positions, sampling and pixels are float32 always.

    Raises:
        UsageError: for another type than those of :data:`FORMATS`, a residual stream narrower than the blocks, or
            an unknown quantization.
    """

    blocks: torch.dtype = torch.float32
    residual: torch.dtype = torch.float32
    head: torch.dtype = torch.float32
    tokenizer: torch.dtype = torch.float32
    cache: CacheName | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        for part in ("blocks", "residual", "head", "tokenizer"):
            if getattr(self, part) not in FORMATS:
                names = ", ".join(str(known).removeprefix("torch.") for known in FORMATS)
                raise UsageError(f"{part}={getattr(self, part)}: must be one of {names}")
        if self.residual not in (torch.float32, self.blocks):
            raise UsageError(f"residual={self.residual}: must be float32, or that of the blocks ({self.blocks})")
        if self.quantization is not None:
            check_quantization(self.quantization)

    @classmethod
    def of(cls, dtype: torch.dtype | str) -> Precision:
        """The policy of a dtype, or of its name: blocks and tokenizer in it, everything else in float32."""
        chosen = dtype_of("dtype", dtype)
        return cls(blocks=chosen, tokenizer=chosen)

    def dtype_of(self, part: Part) -> torch.dtype:
        dtype: torch.dtype = torch.float32 if part == "exact" else getattr(self, part)
        return dtype


def for_weight(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the format of the weight that it is about to meet; the same tensor if it has it already."""
    return x.to(weight.dtype)


def part_of(name: str, policy: Policy) -> Part:
    """The part that a weight belongs to.

    Raises:
        KeyError: if no pattern fits.
    """
    part = next((part for pattern, part in policy if re.match(pattern, name)), None)
    if part is None:
        raise KeyError(f"weight {name!r} belongs to no part of the precision policy")
    return part


def apply_precision(module: nn.Module, precision: Precision, policy: Policy) -> None:
    """Brings all floating-point weights and buffers of a module to the format of their part, in place.

    Each weight is cast once, from what it is to what it is to be.

    Raises:
        KeyError: for a weight that no pattern fits.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(precision.dtype_of(part_of(name, policy)))
