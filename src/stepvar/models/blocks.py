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
from stepvar.core.stack import Sublayer, SublayerHook, SublayerRef, run_dense
from stepvar.core.tokens import TokenMap
from stepvar.kernels import ops


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


class ResidualStream:
    """The residual stream x (R, N, C) with an update that is still to be added.

    Updates are added together with the normalisation that follows: one pass over x in place of several.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._update: Tensor | None = None
        self._gate: Tensor | None = None
        self._owned = False  # whether x is a tensor of this stream, which may be written into

    def layer_norm(self, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``norm(x) * (1 + scale) + shift``, see :func:`~stepvar.kernels.ops.add_layer_norm`."""
        update, gate = self._take()
        return self._settle(ops.add_layer_norm(self._x, update, gate, scale, shift, dtype, inplace=self._owned), update)

    def affine_layer_norm(self, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Layer norm with a weight and a bias (C,)."""
        update, gate = self._take()
        return self._settle(
            ops.add_affine_layer_norm(self._x, update, gate, weight, bias, eps, dtype, inplace=self._owned), update
        )

    def rms_norm(
        self, weight: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        """Root-mean-square norm with a weight (C,), and a modulation if there is one."""
        update, gate = self._take()
        return self._settle(
            ops.add_rms_norm(self._x, update, gate, weight, scale, shift, eps, dtype, inplace=self._owned), update
        )

    def add(self, update: Tensor, gate: Tensor | None = None) -> None:
        """Adds ``gate * update`` when the stream is next read."""
        self._x, self._update, self._gate = self.read(), update, gate

    def read(self) -> Tensor:
        """x with all updates added; the caller must not write into it."""
        update, gate = self._take()
        if update is not None:
            self._x, self._owned = ops.add_gated(self._x, update, gate, inplace=self._owned), True
        return self._x

    def _take(self) -> tuple[Tensor | None, Tensor | None]:
        update, gate = self._update, self._gate
        self._update = self._gate = None
        return update, gate

    def _settle(self, result: tuple[Tensor, Tensor], update: Tensor | None) -> Tensor:
        self._x = result[0]
        self._owned = self._owned or update is not None
        return result[1]


class BlockRun(ABC, Generic[State]):
    """The blocks of one pass; a family says what a block is."""

    def __init__(self, depth: int, state: State, step: Step, hook: SublayerHook) -> None:
        self.depth, self.state, self.step, self._hook = depth, state, step, hook
        self.cfg_blocks = cfg_insertion_blocks(step, depth)
        self.rows = step.row_slice

    @abstractmethod
    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        """Runs one block, whose sub-layers go through :meth:`hook` and whose attention is :meth:`attend`."""

    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        """Runs one block on a stream, without a hook; families without fused blocks run the plain ones."""
        raise NotImplementedError

    def can_fuse(self, tokens: TokenMap) -> bool:
        """Whether blocks run fused: nothing acts around their sub-layers, and there are kernels for the tokens.

        Not in float32, which is for exact comparison with the reference implementations.
        """
        overridden = type(self).run_fused_block is not BlockRun.run_fused_block
        exact = self.state.cache.dtype == torch.float32
        return overridden and not exact and self._hook is run_dense and ops.use_triton(tokens.features)

    def _run_fused(self, tokens: TokenMap, first: int, last: int) -> TokenMap:
        stream = ResidualStream(tokens.features)
        for layer in range(first, last):
            self.run_fused_block(stream, tokens.positions, layer)
            if layer in self.cfg_blocks:
                guided = classifier_free_guidance(stream.read(), self.step.guidance)
                stream = ResidualStream(guided.repeat(2, 1, 1))
        return tokens.with_features(stream.read())

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        if self.can_fuse(tokens):
            return self._run_fused(tokens, first, self.depth if last is None else last)
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
