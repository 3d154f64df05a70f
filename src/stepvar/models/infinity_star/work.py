"""Operations of the InfinityStar transformer, counted from shapes."""

from __future__ import annotations

from stepvar.core.plan import Step
from stepvar.models.blocks import logit_rows
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.work import Work, product_work


def sublayer_work(config: InfinityStarConfig, sublayer: str, rows: int, count: int, seen: int) -> Work:
    """A residual sub-layer of a block, on ``count`` tokens in each of ``rows`` rows."""
    tokens, width = rows * count, config.width
    if sublayer == "self":
        products = 4 * tokens * width * (width + config.kv_width)
        # Norm 4, norms per head 8, turning 14, merging heads 2, sum 3; the keys are fewer, and copied once.
        moved = 31 * tokens * width + 2 * rows * seen * config.kv_width
        return Work(tokens, products, 4 * tokens * seen * width, moved, 30)
    hidden = config.ffn_width
    return Work(tokens, 6 * tokens * width * hidden, 0, tokens * (7 * width + 5 * hidden), 9)


def embed_work(config: InfinityStarConfig, step: Step) -> Work:
    return product_work(step.samples * step.grid.size, config.token_channels, config.width)


def predict_work(config: InfinityStarConfig, step: Step) -> Work:
    """The head, which has more outputs at fine scales."""
    return product_work(logit_rows(step) * step.grid.size, config.width, 2 * config.bits_at(step.scale))
