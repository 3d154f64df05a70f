"""Which weights of a model are stored in eight bits: those of the products inside the blocks.

Modulations, embeddings, norms, heads and tokenizers stay in the model's precision, and so do the diffusion head of
HART and the projection into STAR's sampler: they are few or sensitive. VAR's projection of the class in each block is
a modulation, too.
"""

from __future__ import annotations

import re

from torch import nn

from stepvar.kernels.linear import Quantization, quantize_linears
from stepvar.models.precision import Policy, part_of

KEPT = re.compile(r".*\b(ada_lin|diffloss|head_proj)\b")
"""Linear layers in the format of the blocks that are not quantised."""


def quantize_blocks(model: nn.Module, kind: Quantization, policy: Policy) -> None:
    """Replaces the linear layers of the blocks in place by :class:`~stepvar.kernels.linear.QuantizedLinear`.

    Args:
        policy: of the model, by which its blocks are known.
    """

    def chosen(name: str) -> bool:
        return part_of(f"{name}.weight", policy) == "blocks" and not KEPT.match(name)

    quantize_linears(model, kind, chosen)
