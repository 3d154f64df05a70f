"""What the generation loop asks of a model family."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import ModelInfo, RunBlocks, SublayerHook
from stepvar.core.tokens import TokenMap

State = TypeVar("State")
Condition_contra = TypeVar("Condition_contra", contravariant=True)


class Staged:
    """Base of the staged conditions of the families: frozen dataclasses whose tensors lie on the model's device."""


class NextScaleModel(Protocol[Condition_contra, State]):
    """A visual autoregressive model: one forward pass per scale, codes summed into an accumulated latent.

    ``State`` holds all that a running generation knows: the condition, the caches, the accumulated latent.
    """

    @property
    def info(self) -> ModelInfo:
        """What methods may know of the model."""
        ...

    def stage(self, condition: Condition_contra, plan: Plan, padded: bool = False) -> Staged:
        """A condition on the model's device: everything that is copied from the host for a generation.

        Args:
            padded: whether texts are padded to one of a few lengths, so that prompts of other lengths fit in its place.

        Raises:
            UsageError: for a condition or a plan that is not the model's.
        """
        ...

    def begin(self, staged: Any, plan: Plan) -> State:
        """Prepares a generation on the device: everything that all passes share is computed or allocated here."""
        ...

    def start(self, condition: Condition_contra | Staged, plan: Plan) -> State:
        """Stages a condition, if it is not staged yet, and begins."""
        ...

    def embed(self, state: State, step: Step) -> TokenMap:
        """The dense map of a pass in front of the blocks, ``step.rows`` rows."""
        ...

    def blocks(self, state: State, step: Step, hook: SublayerHook) -> RunBlocks:
        """The blocks of this pass, to be run on a map or on parts of it.

        Args:
            hook: runs every residual sub-layer; :func:`~stepvar.core.stack.run_dense` leaves them as they are.
        """
        ...

    def predict(self, state: State, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, ..., classes) in float32 with temperature and guidance applied."""
        ...

    def accumulate(self, state: State, indices: Tensor, step: Step, weights: Tensor | None = None) -> None:
        """Adds the codes of the sampled indices or bits (B, N, ...) to the accumulated latent.

        Args:
            weights: (B, N, classes), when soft codes are asked for: how much each code of the codebook is to weigh.
        """
        ...

    def refine(self, state: State, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise) -> None:
        """Adds to the accumulated latent what no index says: the residual of a diffusion head, for families with one.

        Args:
            tokens: the dense map behind the blocks, from which the indices were predicted.
            noise: where random numbers come from.
        """
        ...

    def decode(self, state: State, tile: int | None = None) -> Tensor:
        """The image so far: (B, 3, H, W) in [-1, 1]; a video has (B, 3, F, H, W).

        Args:
            tile: side of the tiles in latent cells, for bounded memory; None: in one piece.
        """
        ...
