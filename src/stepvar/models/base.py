"""What the generation loop asks of a model family."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import NO_HOOKS, Hooks, ModelInfo, RunBlocks
from stepvar.core.tokens import TokenMap
from stepvar.models.offload import Part

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

    @abstractmethod
    def stage(self, condition: Condition_contra, plan: Plan, padded: bool = False) -> Staged:
        """A condition on the model's device: everything that is copied from the host for a generation.

        Args:
            padded: whether texts may be padded to one of a few lengths, so that prompts of other lengths fit in its
                place; where padding costs more than it saves, they are not.

        Raises:
            UsageError: for a condition or a plan that is not the model's.
        """
        ...

    @abstractmethod
    def begin(self, staged: Any, plan: Plan) -> State:
        """Prepares a generation on the device: everything that all passes share is computed or allocated here."""
        ...

    def start(self, condition: Condition_contra | Staged, plan: Plan) -> State:
        """Stages a condition, if it is not staged yet, and begins."""
        ...

    @abstractmethod
    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        """What a pass starts from: the accumulated latent, resampled to the grid of the pass, (B, N, channels)."""
        ...

    @abstractmethod
    def embed(self, state: State, step: Step) -> TokenMap:
        """The dense map of a pass before the blocks, ``step.rows`` rows."""
        ...

    def blocks(self, state: State, step: Step, hooks: Hooks = NO_HOOKS) -> RunBlocks:
        """The blocks of this pass, to be run on a map or on parts of it.

        Args:
            hooks: what is done inside the blocks.
        """
        ...

    def predict(self, state: State, tokens: TokenMap, step: Step) -> Tensor:
        """Logits (B, N, ..., classes) in float32 with temperature and guidance applied."""
        ...

    def sample(
        self, state: State, tokens: TokenMap, logits: Tensor, step: Step, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        """The indices or bits (B, N, ...) of a pass, and the weights of soft codes where they are asked for.

        Families whose late scales are sampled in several steps do so here.

        Args:
            tokens: the dense map after the blocks.
            logits: what :meth:`predict` made of it.
            noise: where random numbers come from.
        """
        ...

    @abstractmethod
    def accumulate(
        self, state: State, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Adds the codes of the sampled indices or bits (B, N, ...) to the accumulated latent.

        Args:
            weights: (B, N, classes), when soft codes are asked for: how much each code of the codebook is to weigh.
            mask: (B, N) bool, the tokens whose codes count; the others add zeros. None: all count.
        """
        ...

    def refine(
        self, state: State, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise, mask: Tensor | None = None
    ) -> None:
        """Adds to the accumulated latent what no index says: the residual of a diffusion head, for families with one.

        Args:
            tokens: the dense map after the blocks, from which the indices were predicted.
            noise: where random numbers come from.
            mask: (B, N) bool, the tokens that add something; None: all.
        """
        ...

    def on_device(self, part: Part) -> AbstractContextManager[None]:
        """Has a part of an offloaded model on its device for as long as the block of code runs."""
        ...

    def latent(self, state: State) -> Tensor:
        """The sum of all codes so far at full size: (B, d, H, W) or (B, d, T, H, W)."""
        ...

    def decode_latent(self, latent: Tensor) -> Tensor:
        """The image of any accumulated latent, also of another size: (B, d, h, w) -> (B, 3, H, W) in [-1, 1]."""
        ...

    def finish(self, state: State) -> None:
        """Frees what only passes need; the state can still be decoded."""
        ...

    def decode(self, state: State, tile: int | None = None, sliced: bool = False) -> Tensor:
        """The image so far: (B, 3, H, W) in [-1, 1]; a video has (B, 3, F, H, W).

        Args:
            tile: side of the tiles in latent cells, for bounded memory; None: in one piece.
            sliced: whether samples are decoded one by one, in the memory of one.
        """
        ...
