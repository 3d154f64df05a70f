"""How many bytes a generation of InfinityStar takes."""

from __future__ import annotations

from stepvar.core.plan import Step
from stepvar.models.footprint import Footprint
from stepvar.models.infinity_star.model import clip_slices, remembered_tokens
from stepvar.models.infinity_star.tokenizer_memory import decode_bytes


class VideoFootprint(Footprint):
    """A generation of videos, whose passes remember the text and the end of the clip before."""

    @property
    def latents(self) -> int:
        """Latent frames of a video."""
        return clip_slices(self.plan.schedule)[-1].stop

    def cache(self) -> int:
        depth = self.config.depth
        tokens = depth * self.text + sum(remembered_tokens(self.plan, self.samples, self.method, depth))
        return int(2 * self.rows * tokens * self.config.kv_width * self.precision.blocks.itemsize)

    def latent(self) -> int:
        full = self.plan.schedule.grids[-1]
        return int(4 * self.samples * self.config.token_channels * self.latents * full.h * full.w)

    def blocks(self, step: Step) -> int:
        """A block at its widest.

        Three residual maps as in other families, and of the sub-layer that needs more: two hidden layers and their
        product; or queries, keys and values with their outcome, the queries three times more in float32 while they
        are normalised and turned, and all keys and values that are seen in one piece.
        """
        config, stream, products = self.config, self.precision.residual.itemsize, self.precision.blocks.itemsize
        run, width = self.run(step), config.width
        feed_forward = run * 3 * config.ffn_width * products
        own = run * (2 * width * products + 3 * 4 * width + 2 * config.kv_width * products)
        seen = 2 * config.kv_width * products * (run + self.text + self._past)
        dense = 2 * step.rows * step.grid.size * width * stream
        return int(dense + step.rows * (2 * run * width * stream + max(feed_forward, own + seen)))

    @property
    def _past(self) -> int:
        return max(remembered_tokens(self.plan, self.samples, self.method, self.config.depth))

    def sampling(self, step: Step) -> int:
        """Logits of both branches, mixed in double precision, as shares, and the draws."""
        logits = step.grid.size * 2 * self.config.bits_at(step.scale)
        return int(logits * (4 * step.rows + step.samples * (3 * 8 + 3 * 4)))

    def decode(self) -> int:
        """All videos pass the decoder at once, chunk by chunk."""
        full = self.plan.schedule.grids[-1]
        size = self.precision.tokenizer.itemsize
        return self.samples * decode_bytes(self.config.tokenizer, self.latents, full.h, full.w, size, tile=self.tile)
