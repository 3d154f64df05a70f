"""Running the blocks of one pass: residual sub-layers under a hook, guidance between blocks, attention to the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.core.cache import KVCache
from stepvar.core.plan import Step
from stepvar.core.stack import AttentionHook, AttentionInputs, Hooks, Projection, Sublayer, SublayerHook, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.kernels import ops
from stepvar.kernels.fp8 import add_norm_quantised
from stepvar.kernels.linear import FP8Linear, Rows, layer_dtype
from stepvar.kernels.norm import Norm


@dataclass(kw_only=True)
class GenerationState:
    """A running generation; the families add what they derive from the condition.

    Attributes:
        cache: keys and values so far.
        latent: the sum of codes at full size, (B, d, H, W) or (B, d, T, H, W) float32.
        constants: what fused blocks derive from weights alone.
        decoded_from: the attributes that decoding reads.
    """

    cache: KVCache
    latent: Tensor
    constants: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    decoded_from: ClassVar[tuple[str, ...]] = ("latent",)

    def for_decoding(self) -> SimpleNamespace:
        """What decoding reads of the state, so that caches and texts need not be held as long."""
        return SimpleNamespace(**{name: getattr(self, name) for name in self.decoded_from})


Model = TypeVar("Model", bound=Any)
State = TypeVar("State", bound=GenerationState)


def residual(tokens: TokenMap, layer: int, sublayers: Sequence[tuple[str, Sublayer]], hook: SublayerHook) -> TokenMap:
    """Adds the update of each sub-layer of a block in turn."""
    for name, sublayer in sublayers:
        # The update is not named: it would be held until the next one is made.
        tokens = tokens.with_features(tokens.features + hook(sublayer, tokens, SublayerRef(layer, name)))
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

    def normed(self, norm: Norm, layer: nn.Linear) -> Rows:
        """x, normalised, in the form that a layer multiplies; see :func:`~stepvar.kernels.ops.add_norm`."""
        update, gate = self._take()
        normed: Rows
        if isinstance(layer, FP8Linear):
            self._x, normed = add_norm_quantised(self._x, update, gate, norm, inplace=self._owned)
        else:
            self._x, normed = ops.add_norm(self._x, update, gate, norm, layer_dtype(layer), inplace=self._owned)
        self._owned = self._owned or update is not None
        return normed

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


class BlockRun(ABC, Generic[Model, State]):
    """The blocks of one pass; a family says what a block is."""

    def __init__(self, model: Model, state: State, step: Step, hooks: Hooks) -> None:
        self.model, self.state, self.step, self.hooks = model, state, step, hooks
        self.depth: int = model.config.depth
        self.cfg_blocks = step.cfg_blocks(self.depth)
        self.rows = step.row_slice
        self.steps = step.together or (step,)
        self.counts: tuple[int, ...] = ()
        self._rotary: tuple[Tensor, Any] | None = None
        self._entered: set[int] = set()
        state.cache.start_pass(step.dropped)

    @abstractmethod
    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        """Runs one block, whose sub-layers go through :meth:`hook` and whose attention is :meth:`attend`."""

    @abstractmethod
    def run_fused_block(self, stream: ResidualStream, positions: Tensor, layer: int) -> None:
        """Runs one block on a stream with fused kernels, without a hook."""

    def embedding_before(self, layer: int) -> Tensor | None:
        """What is added to the tokens in front of a block, (C,), or (N, C) where several scales run; None: nothing."""
        return None

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        self.counts = tokens.counts or (tokens.features.shape[1],)
        tokens = tokens if first in self._entered else self.entered(tokens, first)
        self._entered.add(first)
        return tokens

    def added_before(self, layer: int) -> Tensor | None:
        """As :meth:`embedding_before`, as long as it was not added yet."""
        return None if layer in self._entered else self.embedding_before(layer)

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        added = self.embedding_before(layer)
        return tokens if added is None else tokens.with_features(tokens.features + added)

    def rotary(self, positions: Tensor, step: Step) -> Any:
        """Cosines and sines of the tokens of a scale at ``positions`` (R, N); None without rotary positions."""
        return None

    def rotary_at(self, positions: Tensor) -> Any:
        """As :meth:`rotary` for all scales that run, computed once for consecutive blocks that see the same tokens."""
        if self._rotary is None or self._rotary[0] is not positions:
            split = positions.split(self.counts, dim=1) if len(self.steps) > 1 else (positions,)
            parts = zip(split, self.steps, strict=True)
            self._rotary = (positions, _joined([self.rotary(own, step) for own, step in parts]))
        return self._rotary[1]

    def can_fuse(self, tokens: TokenMap) -> bool:
        """Whether blocks run fused: nothing acts around their sub-layers, and there are kernels for the tokens.

        Not in float32, which is for exact comparison with the reference implementations.
        """
        exact = self.state.cache.dtype == torch.float32
        return not exact and self.hooks.sublayer is None and ops.use_triton(tokens.features)

    def _run_fused(self, tokens: TokenMap, first: int, last: int) -> TokenMap:
        stream = ResidualStream(tokens.features)
        for layer in range(first, last):
            with self.model.block_on_device(layer):
                self.run_fused_block(stream, tokens.positions, layer)
            if layer in self.cfg_blocks:
                stream = ResidualStream(self.step.guided_features(stream.read()))
        return tokens.with_features(stream.read())

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        last = self.depth if last is None else last
        self.counts = tokens.counts or (tokens.features.shape[1],)
        if self.can_fuse(tokens):
            return self._run_fused(tokens, first, last)
        for layer in range(first, last):
            with self.model.block_on_device(layer):
                tokens = self.run_block(tokens, layer)
            if layer in self.cfg_blocks:
                tokens = tokens.with_features(self.step.guided_features(tokens.features))
        return tokens

    def hook(self, sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        """The hook around sub-layers, which is told how many blocks there are."""
        if self.hooks.sublayer is None:
            return sublayer(tokens)
        return self.hooks.sublayer(sublayer, tokens, ref._replace(depth=self.depth))

    def cache(self, layer: int) -> KVCache:
        """Where a block keeps its keys and values."""
        return self.state.cache

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, projection: Projection) -> Tensor:
        """Attention over the tokens of this pass and all earlier ones; see :data:`~stepvar.models.layers.Attend`."""
        keys, values = self.cache(layer).append(layer, k, v, self.rows)
        return self.attend_cached(layer, AttentionInputs(q, keys, values, projection))

    def attend_cached(self, layer: int, inputs: AttentionInputs) -> Tensor:
        """Attention to keys that the cache holds already, of which some may leave it afterwards."""
        if len(self.counts) > 1:
            return self._attend_by_scale(layer, inputs)
        ref = SublayerRef(layer, "self", self.depth)
        hook, dropped = self.attention_hook(layer), self.step.dropped[layer] if self.step.dropped else 0
        plain = self.plain_attention
        attended = plain(inputs) if hook is None else hook(plain, inputs, ref)
        if dropped and self.hooks.cache is not None and self.step.is_read:
            cache = self.cache(layer)
            own = inputs.without_first(cache.front(layer))
            index = self.hooks.cache(own, own.keys.shape[2] - dropped, ref)
            cache.select(layer, self.rows, index, inputs.keys, inputs.values)
        return attended

    def _attend_by_scale(self, layer: int, inputs: AttentionInputs) -> Tensor:
        """The attention of scales that run together: each sees its own keys and those before them."""
        seen, attended = inputs.keys.shape[2] - sum(self.counts), []
        for step, queries in zip(self.steps, inputs.queries.split(self.counts, dim=2), strict=True):
            seen += queries.shape[2]
            keys, values = self.seen_by(step, layer, inputs.keys[:, :, :seen], inputs.values[:, :, :seen])
            attended.append(self.plain_attention(replace(inputs, queries=queries, keys=keys, values=values)))
        return torch.cat(attended, dim=2)

    def seen_by(self, step: Step, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What one of several scales that run together sees of the keys and values up to its own."""
        return keys, values

    def attention_hook(self, layer: int) -> AttentionHook | None:
        """What computes the attention of a layer in place of the model."""
        return self.hooks.attention

    def plain_attention(self, inputs: AttentionInputs) -> Tensor:
        """The family's own attention."""
        return F.scaled_dot_product_attention(inputs.queries, inputs.keys, inputs.values, scale=1.0)


class RotaryRun(BlockRun[Model, State]):
    """Blocks whose rotary positions are rows of a table for each scale: ``state.rotary``."""

    state: Any
    _tables: tuple[Tensor, tuple[tuple[Tensor, Tensor], Tensor]] | None = None

    def table(self, step: Step) -> tuple[Tensor, Tensor]:
        """The table of the rotary positions of a scale."""
        cos, sin = self.state.rotary[step.index]
        return cos, sin

    def tables(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Cosines and sines of all positions of the scales that run, and the rows of them that tokens take (R, N)."""
        if len(self.steps) == 1:
            return self.table(self.step), positions
        if self._tables is None or self._tables[0] is not positions:
            self._tables = (positions, self._joined_tables(positions))
        return self._tables[1]

    def _joined_tables(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Those of several scales; made once for consecutive blocks that see the same tokens."""
        tables = [self.table(step) for step in self.steps]
        starts = accumulate((len(cos) for cos, _ in tables[:-1]), initial=0)
        rows = [own + start for own, start in zip(positions.split(self.counts, dim=1), starts, strict=True)]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return (cos, sin), torch.cat(rows, dim=1)

    def rotary(self, positions: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        cos, sin = self.table(step)
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)


def _joined(parts: Sequence[Any]) -> Any:
    """Cosines and sines (R, 1, N, D) of several scales in a row; None if they have none."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    return tuple(torch.cat(part, dim=2) for part in zip(*parts, strict=True))
