"""How much there is to compute, counted from shapes.

The report of a generation and the plan of a budget (:mod:`stepvar.cost`) both count with these functions, so that
what is planned and what is reported are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepvar.core.plan import Step


@dataclass(frozen=True)
class Work:
    """What one part of a computation does.

    Attributes:
        rows: rows of the matrix that meets the weights: the tokens of all branches and samples.
        products: multiplications and additions of products with weights.
        attention: multiplications and additions of attention's two products.
        moved: numbers read and written by all that is no matrix product (norms, gates, rotary positions, copies),
            counted for the plain PyTorch path; an estimate, as fused kernels move fewer.
        launches: operations that are started; an estimate likewise.
    """

    rows: int = 0
    products: int = 0
    attention: int = 0
    moved: int = 0
    launches: int = 0

    @property
    def flops(self) -> int:
        """Multiplications and additions of all matrix products: what reports show."""
        return self.products + self.attention


@dataclass(frozen=True)
class ScaleWork:
    """The work of one scale.

    Attributes:
        stack: each residual sub-layer of each block, in order.
        rest: what no pruning changes: embedding, head, sampling, codes.
    """

    stack: tuple[Work, ...]
    rest: tuple[Work, ...]

    @property
    def flops(self) -> int:
        return sum(work.flops for work in (*self.stack, *self.rest))


def product_work(rows: int, inputs: int, outputs: int) -> Work:
    """A linear layer on (rows, inputs)."""
    return Work(rows, products=2 * rows * inputs * outputs, launches=1)


def self_attention_work(rows: int, count: int, width: int, seen: int, rotary: bool = False) -> Work:
    """Self-attention of ``count`` tokens in each of ``rows`` rows to ``seen`` tokens, with its projections."""
    tokens = rows * count
    # Norm and modulation 4, unit lengths 8, cache 4, merging heads 2, gate and sum 5; turning queries and keys 14.
    passes, launches = (37, 30) if rotary else (23, 18)
    return Work(tokens, 8 * tokens * width * width, 4 * tokens * seen * width, passes * tokens * width, launches)


def cross_attention_work(rows: int, count: int, width: int, text: int) -> Work:
    """Attention of a map to ``text`` tokens whose keys and values are ready, with its projections."""
    tokens = rows * count
    return Work(tokens, 4 * tokens * width * width, 4 * tokens * text * width, 7 * tokens * width, 7)


def feed_forward_work(rows: int, count: int, width: int, hidden: int, matrices: int = 2) -> Work:
    """The two layers of a feed-forward sub-layer, or the three of a gated one."""
    tokens, products = rows * count, 2 * rows * count * matrices * width * hidden
    return Work(tokens, products, 0, tokens * (9 * width + 2 * (matrices - 1) * hidden), 7 + matrices)


def head_work(rows: int, count: int, width: int, outputs: int) -> Work:
    """The head with its modulation, which is computed once per row."""
    products = 2 * rows * width * (count * outputs + 2 * width)
    return Work(rows * count, products, 0, rows * count * (4 * width + 2 * outputs), 8)


def sampling_work(samples: int, count: int, outputs: int) -> Work:
    """Drawing from the logits, truncation not counted."""
    return Work(moved=10 * samples * count * outputs, launches=8)


Sublayer = Callable[[str, int, int, int, int], Work]
"""(sub-layer's name, rows, tokens, tokens seen, text tokens) -> its work."""


def stack_work(
    sublayer: Sublayer, names: Sequence[str], step: Step, tokens: Sequence[int], seen: Sequence[int], text: int
) -> tuple[Work, ...]:
    """All sub-layers of all blocks; ``tokens`` and ``seen`` have one entry per block."""
    return tuple(
        sublayer(name, step.rows, count, before, text)
        for count, before in zip(tokens, seen, strict=True)
        for name in names
    )
