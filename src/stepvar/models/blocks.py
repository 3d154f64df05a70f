"""Running the blocks of one scale: what a method may do around them, guidance between them, what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.cache import KVCache
from stepvar.core.plan import Plan, Step
from stepvar.core.sampling import classifier_free_guidance
from stepvar.core.tokens import TokenMap
from stepvar.methods.base import Method, SublayerRef
from stepvar.models.base import CountedModel
from stepvar.models.work import ScaleWork, Work

Sublayer = Callable[[TokenMap], Tensor]
"""The update (R, N, C) that a residual sub-layer computes for a map."""

Around = Callable[[Sublayer, TokenMap, SublayerRef], Tensor]
"""What a method does around a residual sub-layer."""


class CachedState(Protocol):
    """What running blocks needs of a generation's state."""

    cache: KVCache
    flops: int


State = TypeVar("State", bound=CachedState)


def residual(tokens: TokenMap, layer: int, sublayers: Sequence[tuple[str, Sublayer]], around: Around) -> TokenMap:
    """Adds the update of each sub-layer of a block in turn."""
    for name, sublayer in sublayers:
        update = around(sublayer, tokens, SublayerRef(layer, name))
        tokens = tokens.with_features(tokens.features + update)
    return tokens


class BlockRun(ABC, Generic[State]):
    """The blocks of one scale; a family says what a block is and what its sub-layers cost."""

    def __init__(self, depth: int, state: State, step: Step, method: Method) -> None:
        self.depth, self.state, self.step, self.method = depth, state, step, method
        self.cfg_layers = cfg_insertion_layers(step, depth)
        self.rows = step.row_slice

    @abstractmethod
    def run_block(self, tokens: TokenMap, layer: int) -> TokenMap:
        """Runs one block, whose sub-layers go through :meth:`around` and whose attention is :meth:`attend`."""

    @abstractmethod
    def sublayer_work(self, ref: SublayerRef, rows: int, count: int) -> Work:
        """What a sub-layer that has just run on ``count`` tokens in each of ``rows`` rows did."""

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for layer in range(first, self.depth if last is None else last):
            tokens = self.run_block(tokens, layer)
            if layer in self.cfg_layers:
                mixed = classifier_free_guidance(tokens.features, self.step.guidance)
                tokens = tokens.with_features(mixed.repeat(2, 1, 1))
        return tokens

    def around(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        """A sub-layer as the method lets it run, counted."""
        ref = ref._replace(depth=self.depth)
        return self.method.run_sublayer(partial(self._counted, run, ref), tokens, ref, self.step)

    def _counted(self, run: Sublayer, ref: SublayerRef, tokens: TokenMap) -> Tensor:
        update = run(tokens)
        rows, count, _ = tokens.features.shape
        self.state.flops += self.sublayer_work(ref, rows, count).flops
        return update

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the tokens of this scale and all earlier ones."""
        keys, values = self.state.cache.append(layer, k, v, self.rows)
        return F.scaled_dot_product_attention(q, keys, values, scale=1.0)


def cfg_insertion_layers(step: Step, depth: int) -> frozenset[int]:
    """Layers behind which guidance mixes the branches at this scale."""
    if not step.applies_cfg:
        return frozenset()
    return frozenset(depth + place for place in step.plan.cfg_layers if place < 0)


def guided_logits(logits: Callable[[int], Tensor], step: Step) -> Tensor:
    """Logits (B, N, ...) of a scale with its temperature and, where the plan mixes logits, its guidance.

    Args:
        logits: computes those of the first rows, as many as it is told.
    """
    values = logits(logit_rows(step)) / step.temperature
    if applies_cfg_on_logits(step):
        return step.plan.mix(values, step.guidance)
    return values[-step.samples :] if step.guidance == 0.0 else values


def applies_cfg_on_logits(step: Step) -> bool:
    """Whether guidance mixes the branches on the logits of a scale."""
    return step.applies_cfg and 0 in step.plan.cfg_layers


def logit_rows(step: Step) -> int:
    """How many rows the head computes at a scale: the first ones, as far as they are needed."""
    return step.rows if applies_cfg_on_logits(step) or step.guidance == 0.0 else step.samples


def planned_cache(
    plan: Plan,
    samples: int,
    method: Method,
    *,
    depth: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    prefix: int = 0,
) -> KVCache:
    """A cache with room for exactly the tokens that the method lets each layer see, and ``prefix`` more.

    In a low precision keys are stored in it, too, although normalisation and rotary positions leave them in float32:
    attention would round them anyway, so the numbers are the same at half the memory.
    """
    capacities = [prefix + tokens for tokens in planned_tokens(plan, samples, method, depth)]
    return KVCache(capacities, samples * (1 + plan.guided), heads, head_dim, dtype, device)


def planned_tokens(plan: Plan, samples: int, method: Method, depth: int) -> list[int]:
    """How many tokens each layer sees in a whole generation; ``plan`` is the one that the method has edited."""
    steps = [step for step in plan.steps(samples) if step.computed]
    return [sum(method.tokens_at(step, layer, depth) for step in steps) for layer in range(depth)]


def planned_works(
    model: CountedModel, plan: Plan, method: Method, samples: int, text: int
) -> list[tuple[Step, ScaleWork]]:
    """The work of every pass that goes through the blocks; ``plan`` is the one that the method has edited.

    Args:
        text: tokens of the condition, for families that attend to it.
    """
    depth, run, found = model.info.depth, dict[int, list[int]](), list[tuple[Step, ScaleWork]]()
    for step in plan.steps(samples):
        if step.computed:
            run[step.index] = [method.tokens_at(step, layer, depth) for layer in range(depth)]
            found.append((step, model.scale_work(step, run[step.index], tokens_seen(plan, step.index, run), text)))
    return found


def tokens_seen(plan: Plan, index: int, run: Mapping[int, Sequence[int]]) -> list[int]:
    """Tokens that each block attends to at a pass: its own, and those of the earlier passes that it reads.

    Args:
        run: by pass so far, how many tokens run through each block.
    """
    read = [index, *(earlier for earlier in run if earlier != index and index in plan.readers[earlier])]
    return [sum(counts) for counts in zip(*(run[earlier] for earlier in read), strict=True)]
