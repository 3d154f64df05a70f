"""Ways to mix the guidance branches on the logits, beside the plain one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepvar.core.plan import Mix
from stepvar.core.sampling import classifier_free_guidance

TINY = 1e-12


@dataclass(frozen=True)
class ProjectedGuidance:
    """Adaptive projected guidance (Sadat, Hilliges, Weber; arXiv 2410.02416), in the form that InfinityStar uses.

    Guidance by the part of the branches' difference that is at right angles to the conditional branch.

    All logits of a sample are one vector. Their difference is first shortened to ``threshold`` (as the root of the
    mean square of its entries), so that a large guidance scale does not blow up what the model is sure of.

    Attributes:
        threshold: longest difference; 0 does not shorten it.
        parallel: share of the part along the conditional branch that is kept (eta).
    """

    threshold: float = 0.05
    parallel: float = 0.0

    def __call__(self, values: Tensor, guidance: float) -> Tensor:
        """(2B, ...) conditional then unconditional -> (B, ...)."""
        conditional, unconditional = values.chunk(2)
        flat = conditional.flatten(1)
        difference = flat - unconditional.flatten(1)
        if self.threshold > 0:
            size = difference.square().mean(dim=1, keepdim=True).sqrt()
            difference = difference * (self.threshold / size).clamp(max=1.0)
        # In double precision: what is left behind the projection is a small difference of large sums.
        direction = flat.double()
        direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=TINY)
        along = (difference.double() * direction).sum(dim=1, keepdim=True) * direction
        update = difference.double() - along + self.parallel * along
        return conditional + (guidance - 1) * update.to(values.dtype).view_as(conditional)


GUIDANCES: dict[str, Mix] = {"plain": classifier_free_guidance, "projected": ProjectedGuidance()}
"""How the logits of the branches can be mixed, by name."""
