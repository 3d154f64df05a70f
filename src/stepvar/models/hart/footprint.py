"""How many bytes a generation of HART takes."""

from __future__ import annotations

from stepvar.core.plan import Step
from stepvar.models.footprint import Footprint


class ResidualFootprint(Footprint):
    """A generation of pictures whose first scale runs on the text, and whose last one draws a residual."""

    def activations(self) -> int:
        """Of the pass that needs most, in the blocks, in sampling or in the diffusion head."""
        last = len(self.plan.schedule) - 1
        head = max((self.head(step) for step in self.steps if step.index == last), default=0)
        return max(super().activations(), head)

    def blocks(self, step: Step) -> int:
        """A block at its widest.

        Three residual maps as in other families, and of the sub-layer that needs more: the hidden layers with their
        product; or queries, keys and values, one of them four times more in float32 while it is turned, and the
        cosines and sines of all tokens.
        """
        config, stream, products = self.config, self.precision.residual.itemsize, self.precision.blocks.itemsize
        hidden = 3 if config.feed_forward == "swiglu" else 2
        attention = config.width * (4 * products + 4 * 4) + 2 * 4 * config.head_dim
        # Of the text one branch runs on all tokens; the other is one token.
        rows, prefix = (step.samples, config.prefix) if step.index == 0 else (step.rows, 0)
        dense = 2 * rows * (step.grid.size + prefix) * config.width * stream
        inside = 2 * config.width * stream + max(hidden * config.ffn_width * products, attention)
        return int(dense + rows * (self.run(step) + prefix) * inside)

    def head(self, step: Step) -> int:
        """The diffusion head of all tokens at once, beside the map that it starts from and the logits, still there.

        Its condition, what it has of that in its own width, and in a block the state, three modulations, and three
        maps on the way to the next state.
        """
        config, products = self.config, self.precision.blocks.itemsize
        maps = 2 * config.width * self.precision.residual.itemsize + 9 * config.diffusion_width * products
        logits = (2 if self.plan.smooth else 1) * 4 * config.outputs
        return int(step.grid.size * (step.rows * maps + step.samples * logits))
