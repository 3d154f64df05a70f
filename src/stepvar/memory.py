"""How much memory a generation takes, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from stepvar.methods.base import Method
from stepvar.models.autoencoder import values_at
from stepvar.models.blocks import planned_tokens
from stepvar.models.infinity import Infinity, InfinityConfig
from stepvar.models.picture import PictureModel
from stepvar.models.precision import Precision
from stepvar.models.tiling import first_whole_level
from stepvar.models.var import VAR, VARConfig
from stepvar.plan import Plan, Step
from stepvar.tokens import Grid

ModelConfig = InfinityConfig | VARConfig


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each kind; weights, cache and latent are exact, the others are of formulas.

    Attributes:
        weights: of the transformer and the tokenizer, without a text encoder.
        cache: keys and values of all layers.
        latent: the latent picture.
        activations: of the scale that needs most, in the blocks or in sampling.
        decode: of the tokenizer's decoder, with the picture.
    """

    weights: int
    cache: int
    latent: int
    activations: int
    decode: int

    @property
    def total(self) -> int:
        """The peak: what stays, and the larger of what scales and decoding need in turn."""
        return self.weights + self.cache + self.latent + max(self.activations, self.decode)


def estimate_memory(
    config: ModelConfig,
    plan: Plan,
    method: Method,
    batch: int,
    dtype: torch.dtype | Precision = torch.float32,
    tile: int | None = None,
) -> MemoryEstimate:
    """What a generation of ``batch`` pictures allocates.

    Args:
        plan: as given to the generation, before the method edits it.
        dtype: a number format as for ``model.set_precision``.
        tile: side of the tiles of decoding in latent cells; None: in one piece.

    Raises:
        UsageError: for a number format that models cannot run in, or a method that does not fit the plan.
    """
    precision = dtype if isinstance(dtype, Precision) else Precision.of(dtype)
    plan = method.edit(plan)
    tokens = sum(planned_tokens(plan, batch, method, config.depth))
    rows, full = batch * (1 + plan.guided), plan.schedule.grids[-1]
    channels, height, width = config.latent_size(full)
    steps = [step for step in plan.steps(batch) if step.computed]
    return MemoryEstimate(
        weights=_weights(config, precision),
        cache=2 * rows * tokens * config.width * precision.blocks.itemsize,
        latent=4 * batch * channels * height * width,
        activations=max(max(_blocks(config, step, method, precision), _sampling(config, step)) for step in steps),
        decode=batch * _decode(config, full, precision, tile),
    )


@lru_cache(maxsize=16)
def _weights(config: ModelConfig, precision: Precision) -> int:
    """Counted on a model that is never allocated."""
    with torch.device("meta"):
        model: PictureModel = Infinity(config) if isinstance(config, InfinityConfig) else VAR(config)
    model.set_precision(precision)
    return sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))


def _blocks(config: ModelConfig, step: Step, method: Method, precision: Precision) -> int:
    """A block at its widest.

    Three residual maps (what came in, its normalised form, the map that a method keeps aside or adds to), and of
    the sub-layer that needs more: the hidden layer in front of and behind its activation; or queries, keys and
    values, two of them once more in float32 while they are turned (with a copy), and their outcome.
    """
    stream, products = precision.residual.itemsize, precision.blocks.itemsize
    run = max(method.tokens_at(step, layer, config.depth) for layer in range(config.depth))
    feed_forward = 2 * config.ffn_width * products
    attention = config.width * (4 * products + 3 * 4)
    dense = 2 * step.rows * step.grid.size * config.width * stream
    return dense + step.rows * run * (2 * config.width * stream + max(feed_forward, attention))


def _sampling(config: ModelConfig, step: Step) -> int:
    """Logits and what is made of them, in float32: of both branches, mixed, sorted with their order, as shares."""
    order = 8 + 4 + 4  # a rank in 64 bits, the sorted value, its share
    classes = step.grid.size * config.outputs
    return classes * (4 * step.rows + step.samples * (3 * 4 + order))


def _decode(config: ModelConfig, full: Grid, precision: Precision, tile: int | None) -> int:
    """The decoder's widest level, per picture, and the picture itself (twice where tiles are blended).

    Tiles run beside the map of the coarse levels, and are normalised through float32.
    """
    tokenizer, size = config.tokenizer, precision.tokenizer.itemsize
    widths = tuple(tokenizer.base_channels * multiplier for multiplier in tokenizer.multipliers)
    _, height, width = config.latent_size(full)
    levels, picture = len(widths), 3 * 4 * height * width * tokenizer.stride**2
    whole = 0 if tile is None else first_whole_level(widths, height, width, tile)
    if tile is None or whole == 0:
        return size * max(values_at(widths, level, height, width) for level in range(levels)) + picture
    wider = 1 if size == 4 else 4 / 3
    part = int(wider * size * max(values_at(widths, level, tile, tile) for level in range(whole)))
    kept = 0 if whole == levels else size * height * width * widths[whole] * 4 ** (levels - 1 - whole)
    return kept + part + 2 * picture
