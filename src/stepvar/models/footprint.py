"""How many bytes the parts of a generation take, counted from shapes; families override what differs in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepvar.core.plan import Plan, Step
from stepvar.methods.base import Method
from stepvar.models.autoencoder import values_at
from stepvar.models.blocks import planned_tokens
from stepvar.models.precision import Precision
from stepvar.models.tiling import first_whole_level


@dataclass(frozen=True)
class Footprint:
    """A generation of pictures by a model whose passes remember all earlier ones.

    Attributes:
        config: of the model: ``depth``, ``width``, ``ffn_width``, ``outputs``, ``latent_size``, ``tokenizer``.
        plan: the one that the method has edited.
        samples: pictures drawn at once.
        precision: number formats.
        tile: side of the tiles of decoding in latent cells; None: in one piece.
        text: tokens of a prompt, for families that remember them like tokens of a picture.
    """

    config: Any
    plan: Plan
    samples: int
    method: Method
    precision: Precision
    tile: int | None = None
    text: int = 0

    @property
    def rows(self) -> int:
        """Samples in all branches that run."""
        return self.samples * (1 + self.plan.guided)

    @property
    def steps(self) -> list[Step]:
        """The passes that go through the blocks."""
        return [step for step in self.plan.steps(self.samples) if step.computed]

    def cache(self) -> int:
        """Keys and values of all layers: exact."""
        tokens = planned_tokens(self.plan, self.samples, self.method, self.config.depth)
        prefix = getattr(self.config, "prefix", 0)  # what some families run beside the first scale
        return (
            2
            * self.rows
            * (sum(tokens) + prefix * self.config.depth)
            * self.config.width
            * self.precision.blocks.itemsize
        )

    def latent(self) -> int:
        """The latent picture: exact."""
        channels, height, width = self.config.latent_size(self.plan.schedule.grids[-1])
        return 4 * self.samples * channels * height * width

    def activations(self) -> int:
        """Of the pass that needs most, in the blocks or in sampling."""
        return max((max(self.blocks(step), self.sampling(step)) for step in self.steps), default=0)

    def blocks(self, step: Step) -> int:
        """A block at its widest.

        Three residual maps (what came in, its normalised form, the map that a method keeps aside or adds to), and of
        the sub-layer that needs more: the hidden layer in front of and behind its activation; or queries, keys and
        values, two of them once more in float32 while they are turned (with a copy), and their outcome.
        """
        config, stream, products = self.config, self.precision.residual.itemsize, self.precision.blocks.itemsize
        feed_forward = 2 * config.ffn_width * products
        attention = config.width * (4 * products + 3 * 4)
        dense = 2 * step.rows * step.grid.size * config.width * stream
        return dense + step.rows * self.run(step) * (2 * config.width * stream + max(feed_forward, attention))

    def run(self, step: Step) -> int:
        """Most tokens of a row that a block runs at a pass."""
        depth = self.config.depth
        return max(self.method.tokens_at(step, layer, depth) for layer in range(depth))

    def sampling(self, step: Step) -> int:
        """Logits and what is made of them, in float32: of both branches, mixed, sorted with their order, as shares."""
        order = 8 + 4 + 4  # a rank in 64 bits, the sorted value, its share
        classes = step.grid.size * self.config.outputs
        return int(classes * (4 * step.rows + step.samples * (3 * 4 + order)))

    def decode(self) -> int:
        """The decoder's widest level, and the pictures themselves (twice where tiles are blended).

        Tiles run beside the map of the coarse levels, and are normalised through float32.
        """
        tokenizer, size, tile = self.config.tokenizer, self.precision.tokenizer.itemsize, self.tile
        widths = tuple(tokenizer.base_channels * multiplier for multiplier in tokenizer.multipliers)
        _, height, width = self.config.latent_size(self.plan.schedule.grids[-1])
        levels, picture = len(widths), 3 * 4 * height * width * tokenizer.stride**2
        whole = 0 if tile is None else first_whole_level(widths, height, width, tile)
        if tile is None or whole == 0:
            most = max(values_at(widths, level, height, width) for level in range(levels))
            return int(self.samples * (size * most + picture))
        wider = 1 if size == 4 else 4 / 3
        part = int(wider * size * max(values_at(widths, level, tile, tile) for level in range(whole)))
        kept = 0 if whole == levels else size * height * width * widths[whole] * 4 ** (levels - 1 - whole)
        return int(self.samples * (kept + part + 2 * picture))
