"""Running the blocks of one pass: residual sub-layers under a hook, guidance between blocks, attention to the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.guidance import cfg_insertion_blocks, classifier_free_guidance
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import Sublayer, SublayerHook, SublayerRef
from stepvar.core.tokens import TokenMap


class CachedState(Protocol):
    """What running blocks needs of a generation's state."""

    cache: KVCache


State = TypeVar("State", bound=CachedState)


def residual(tokens: TokenMap, layer: int, sublayers: Sequence[tuple[str, Sublayer]], hook: SublayerHook) -> TokenMap:
    """Adds the update of each sub-layer of a block in turn."""
    for name, sublayer in sublayers:
        update = hook(sublayer, tokens, SublayerRef(layer, name))
        tokens = tokens.with_features(tokens.features + update)
    return tokens


class BlockRun(ABC, Generic[State]):
    """The blocks of one pass; a family says what a block is."""

    def __init__(self, depth: int, state: State, step: Step, hook: SublayerHook) -> None:
        self.depth, self.state, self.step, self._hook = depth, state, step, hook
        self.cfg_blocks = cfg_insertion_blocks(step, depth)
        self.rows = step.row_slice

    @abstractmethod
    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        """Runs one block, whose sub-layers go through :meth:`hook` and whose attention is :meth:`attend`."""

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for layer in range(first, self.depth if last is None else last):
            tokens = self.run_block(tokens, layer)
            if layer in self.cfg_blocks:
                guided = classifier_free_guidance(tokens.features, self.step.guidance)
                tokens = tokens.with_features(guided.repeat(2, 1, 1))
        return tokens

    def hook(self, sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        """The hook, which is told how many blocks there are."""
        return self._hook(sublayer, tokens, ref._replace(depth=self.depth))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the tokens of this pass and all earlier ones."""
        keys, values = self.state.cache.append(layer, k, v, self.rows)
        return F.scaled_dot_product_attention(q, keys, values, scale=1.0)


def planned_cache(
    plan: Plan, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, prefix: int = 0
) -> KVCache:
    """A cache with room for exactly the tokens that the plan lets each block keep, and ``prefix`` more.

    In a low precision keys are stored in it, too, although normalisation and rotary positions leave them in float32:
    attention would round them anyway, so the numbers are the same at half the memory.
    """
    return KVCache([prefix + tokens for tokens in plan.cache_tokens], plan.rows, heads, head_dim, dtype, device)
