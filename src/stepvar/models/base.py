"""What the generation loop asks of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.sampling import Noise
from stepvar.core.tokens import TokenMap
from stepvar.methods.base import Method, ModelInfo, RunBlocks
from stepvar.models.work import ScaleWork


class RunState(Protocol):
    """What the loop itself needs of a running generation."""

    flops: int


State = TypeVar("State", bound=RunState)
Condition_contra = TypeVar("Condition_contra", contravariant=True)


class NextScaleModel(Protocol[Condition_contra, State]):
    """A visual autoregressive model: one forward pass per scale, codes summed into a latent picture.

    ``State`` holds all that a running generation knows: the condition, the caches, the latent picture.
    """

    @property
    def info(self) -> ModelInfo:
        """What methods may know of the model."""
        ...

    def start(self, condition: Condition_contra, plan: Plan, method: Method) -> State:
        """Prepares a generation: everything that all scales share is computed or allocated here."""
        ...

    def embed(self, state: State, step: Step) -> TokenMap:
        """The dense map of a scale in front of the blocks, ``step.rows`` rows."""
        ...

    def blocks(self, state: State, step: Step, method: Method) -> RunBlocks:
        """The blocks of this scale, to be run on a map or on parts of it."""
        ...

    def predict(self, state: State, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, ..., classes) in float32 with temperature and guidance applied."""
        ...

    def accumulate(self, state: State, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        """Adds the codes of the sampled symbols (B, N, ...) to the latent picture.

        Args:
            weights: (B, N, classes), when soft codes are asked for: how much each code of the codebook is to weigh.
        """
        ...

    def refine(self, state: State, tokens: TokenMap, symbols: Tensor, step: Step, noise: Noise) -> None:
        """Adds to the latent picture what no symbol says: the residual of a diffusion head, for families with one.

        Args:
            tokens: the dense map behind the blocks, from which the symbols were predicted.
            noise: where random numbers come from.
        """
        ...

    def decode(self, state: State) -> Tensor:
        """The picture so far: (B, 3, H, W) in [-1, 1]."""
        ...


class CountedModel(Protocol):
    """A model that says what its scales compute before they do: what plans of a budget are made of."""

    @property
    def info(self) -> ModelInfo: ...

    def scale_work(self, step: Step, tokens: Sequence[int], seen: Sequence[int], text: int) -> ScaleWork:
        """What a scale computes, from shapes alone; its operations are those that ``state.flops`` counts.

        Args:
            tokens: how many tokens run through each block.
            seen: how many tokens each block attends to: those of this scale and all earlier ones.
            text: tokens of the condition, for families that attend to it.
        """
        ...
