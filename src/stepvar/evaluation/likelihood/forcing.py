"""Teacher forcing: a sampler that takes given codes, and measures what the logits say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Step


class TeacherForcing:
    """Takes the codes of real images in place of sampled ones; everything else of a generation stays as it is.

    Passes are not forced in the sense of a plan, whose forced passes methods leave alone: each is computed, pruned and
    predicted as in a generation.

    Args:
        codes: indices or bits (B, N, ...) by pass.
        reference: log-probabilities by pass, as :attr:`log_probs` of another run has them.
        keeps: whether log-probabilities are kept.

    Attributes:
        bits: by pass, (B,): ``-log2 p`` of the codes, summed over the tokens and their bits.
        divergence: by pass, (B,): ``sum p_ref log2(p_ref / p)``, the Kullback-Leibler divergence, summed likewise.
        log_probs: by pass, (B, N, ..., classes): natural logarithms.
    """

    def __init__(
        self, codes: Mapping[int, Tensor], reference: Mapping[int, Tensor] | None = None, keeps: bool = False
    ) -> None:
        self.codes, self.reference, self.keeps = codes, reference, keeps
        self.bits: dict[int, Tensor] = {}
        self.divergence: dict[int, Tensor] = {}
        self.log_probs: dict[int, Tensor] = {}

    def __call__(self, logits: Tensor, noise: Noise, step: Step) -> tuple[Tensor, Tensor | None]:
        codes = self.codes[step.index]
        log_probs = logits.float().log_softmax(dim=-1)
        self.bits[step.index] = _per_image(-log_probs.gather(-1, codes.unsqueeze(-1)))
        if self.reference is not None:
            wanted = self.reference[step.index]
            self.divergence[step.index] = _per_image(wanted.exp() * (wanted - log_probs))
        if self.keeps:
            self.log_probs[step.index] = log_probs
        return codes, None


def _per_image(nats: Tensor) -> Tensor:
    """Nats (B, N, ...) -> their sum in bits (B,).

    Tokens are added up in float64, since there are thousands, on the CPU, since not every device has float64.
    """
    return nats.flatten(2).sum(dim=2).cpu().double().sum(dim=1) / math.log(2)
