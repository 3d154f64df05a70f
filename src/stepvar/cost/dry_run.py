"""What a generation computes and how much memory it takes, found out by running it without data.

The real loop runs the real model and the real method on PyTorch's ``meta`` device, where tensors have a shape, a type
and a storage, and nothing is computed. So there are no formulas to keep in step with the code. Two things stand in for
what a device does: attention allocates what fused kernels allocate, and no matrix of all pairs of tokens
(:class:`~stepvar.cost.meter.Meter`); and random numbers are made where they are needed (:class:`MetaNoise`).

Blocks through which equally many tokens run at every pass are alike. Two of each kind are run: the first also does what
is done once for all of them (such as looking up rotary positions), the second counts for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.split import held_rows
from stepvar.core.stack import NO_HOOKS, Hooks, RunBlocks
from stepvar.core.tokens import TokenMap
from stepvar.cost.meter import Meter, Spent, describe
from stepvar.generation import generate
from stepvar.methods.base import Method
from stepvar.models.meta import build_on_meta
from stepvar.models.offload import OffloadName, weights_on_device
from stepvar.models.precision import Precision
from stepvar.utils.tensors import map_tensors, signature, tensors_of

META = torch.device("meta")

RUN_OF_EACH_KIND = 2
"""How many of the blocks that are alike are run."""


class ModelSpec(NamedTuple):
    """What a model is without its weights: its class, its configuration, its number formats, and where they rest."""

    build: Callable[[Any], Any]
    config: Any
    precision: Precision
    offload: OffloadName | None = None
    blocks_on_device: int = 0

    @classmethod
    def of(cls, model: Any) -> ModelSpec:
        spec, offload = cls(type(model), model.config, model.precision), model.offload
        if offload is None:
            return spec
        return spec._replace(offload=offload.name, blocks_on_device=offload.blocks_on_device)


@dataclass(frozen=True)
class DryRun:
    """What a generation takes.

    Attributes:
        flops: floating-point operations of each pass that is run, by its index.
        prepare_flops: of what all passes share.
        decode_flops: from the accumulated latent to pixels.
        weights: bytes of weights on the device during the loop over scales, without a text encoder.
        decoder_weights: bytes of weights on the device while decoding: those of an offloaded model differ.
        cache: bytes of keys and values.
        scales: most bytes that a pass or the preparation holds beside weights and cache.
        decoding: most bytes that decoding holds beside weights; the cache is freed before.
    """

    flops: Mapping[int, int]
    prepare_flops: int
    decode_flops: int
    weights: int
    decoder_weights: int
    cache: int
    scales: int
    decoding: int

    @property
    def peak(self) -> int:
        """Most bytes held at a time."""
        return max(self.weights + self.cache + self.scales, self.decoder_weights + self.decoding)


def dry_run(
    model: Any,
    condition: Any,
    plan: Plan,
    method: Method,
    forced: Mapping[int, Tensor] | None = None,
    tile: int | None = None,
    sliced: bool = False,
) -> DryRun:
    """Runs a generation without data. Results are remembered, so a second call with like arguments takes no time.

    Args:
        model: of any family, on any device, or its :class:`ModelSpec`.
        condition: what to generate, in the family's own form, on any device.
        plan: as the method resolved it; of one that leaves a decision, the passes of its most costly choice.
        forced: codes of forced passes, on any device; the shape of those that are missing is found out.
        tile: side of the tiles of decoding in latent cells; None: in one piece.
        sliced: whether samples are decoded one by one.
    """
    spec = model if isinstance(model, ModelSpec) else ModelSpec.of(model)
    plan = replace(plan, decision=None)
    given, codes = to_meta(condition), to_meta(dict(forced or {}))
    held = held_rows(plan)
    key = (
        spec,
        plan.settings,
        plan.samples,
        (held.start, held.stop),
        tuple((step.tokens, step.dropped) for step in plan.steps),  # known only behind a run of some methods
        repr(method),
        tile,
        sliced,
        signature(given, describe),
        signature(codes, describe),
    )
    return _remembered(_Generation(key, spec, given, plan, method, codes, tile, sliced))


def count_flops(
    model: Any, condition: Any, plan: Plan, method: Method, forced: Mapping[int, Tensor] | None = None
) -> Mapping[int, int]:
    """Floating-point operations of each pass, by its index; arguments as for :func:`dry_run`."""
    return dry_run(model, condition, plan, method, forced).flops


def flop_counter(
    model: Any, condition: Any, plan: Plan, method: Method, forced: Mapping[int, Tensor] | None = None
) -> Callable[[], Mapping[int, int]]:
    """Counts when it is called; keeps no data of the condition and no weights until then. Arguments as above."""
    return partial(count_flops, ModelSpec.of(model), to_meta(condition), plan, method, to_meta(dict(forced or {})))


@dataclass(frozen=True)
class _Generation:
    """What is to be run; equal to another one by its key alone."""

    key: tuple[Any, ...]
    spec: ModelSpec = field(compare=False)
    condition: Any = field(compare=False)
    plan: Plan = field(compare=False)
    method: Method = field(compare=False)
    forced: Mapping[int, Tensor] = field(compare=False)
    tile: int | None = field(compare=False)
    sliced: bool = field(compare=False)


@lru_cache(maxsize=64)
def _remembered(generation: _Generation) -> DryRun:
    spec = generation.spec
    model, results = meta_model(spec)
    meter = Meter(META, results)
    meter.watch((*model.parameters(), *model.buffers()))
    whole = meter.held
    meter.watch(tensors_of(generation.condition))
    dry = DryModel(model, meter, generation.plan)
    forced, noise = ForcedCodes(dry, generation.plan, generation.forced), MetaNoise()
    behind: dict[int, int] = {}

    def on_scale_end(step: Step, _: Any) -> None:
        behind[step.index] = meter.flops

    with meter:
        state = generate(
            dry, generation.condition, generation.plan, generation.method, noise, forced, on_scale_end=on_scale_end
        )
        scales, before_decoding = meter.peak, meter.flops
        meter.restart_peak()
        model.decode(state, generation.tile, generation.sliced)
    marks = [dry.prepare_flops, *behind.values()]
    weights, decoder_weights = weights_on_device(model, spec.offload, spec.blocks_on_device)
    return DryRun(
        flops={index: after - before for index, before, after in zip(behind, marks, marks[1:], strict=False)},
        prepare_flops=dry.prepare_flops,
        decode_flops=meter.flops - before_decoding,
        weights=weights,
        decoder_weights=decoder_weights,
        cache=dry.cache_bytes,
        scales=scales - whole - dry.cache_bytes,
        decoding=meter.peak - whole,
    )


@lru_cache(maxsize=4)
def meta_model(spec: ModelSpec) -> tuple[Any, dict[Any, Any]]:
    """A model on the meta device, and the shapes of the results of its operations, for :class:`Meter`."""
    model = build_on_meta(spec.build, spec.config).set_precision(spec.precision)
    return model.eval().requires_grad_(False), {}


class MetaNoise:
    """Random numbers without numbers; see :class:`~stepvar.core.noise.Noise`."""

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        return torch.empty(tuple(shape), device=device)

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return drawn

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.empty(tuple(shape), device=device)


class MetaExchange:
    """Stands in for the process of the unconditional branch: what that sends has the shape of what it is sent."""

    branch = 0

    def gather(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(values), torch.empty_like(values)

    def broadcast(self, values: Tensor, branch: int) -> Tensor:
        return values if branch == self.branch else torch.empty_like(values)


class DryModel:
    """A model on the meta device of whose blocks only some are run; in all else it is the model.

    Attributes:
        state: of the running generation.
        prepare_flops: operations until the first pass.
        cache_bytes: of keys and values.
    """

    def __init__(self, model: Any, meter: Meter, plan: Plan) -> None:
        self._model, self._meter = model, meter
        self._kinds = kinds_of_blocks(plan)
        self.state: Any = None
        self.prepare_flops = self.cache_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def start(self, condition: Any, plan: Plan) -> Any:
        self.state = self._model.start(condition, plan)
        self.prepare_flops, self.cache_bytes = self._meter.flops, self.state.cache.nbytes
        return self.state

    def blocks(self, state: Any, step: Step, hooks: Hooks = NO_HOOKS) -> AlikeBlocks:
        return AlikeBlocks(self._model.blocks(state, step, hooks), self._meter, self._kinds)

    def codes(self, step: Step) -> Tensor:
        """Indices or bits of a pass, of the shape that would be sampled."""
        with self._meter.paused():
            logits = self._model.predict(self.state, self._model.embed(self.state, step), step)
            return torch.empty(logits.shape[:-1], dtype=torch.int64, device=META)


def kinds_of_blocks(plan: Plan) -> list[tuple[int, int]]:
    """For each block the first block that is like it, and how many like it there are in front of it."""
    none = (0,) * plan.depth
    counts = ((step.tokens, step.dropped or none, step.keys_per_query or none) for step in plan.computed)
    columns = list(zip(*(zip(*three, strict=True) for three in counts), strict=True))
    return [(columns.index(column), columns[:layer].count(column)) for layer, column in enumerate(columns)]


class AlikeBlocks:
    """The blocks of one pass, of which those that are like others are counted and not run.

    Args:
        kinds: see :func:`kinds_of_blocks`.
    """

    def __init__(self, run: RunBlocks, meter: Meter, kinds: Sequence[tuple[int, int]]) -> None:
        self._run, self._meter, self._kinds = run, meter, kinds
        self._spent: dict[int, Spent] = {}

    @property
    def depth(self) -> int:
        return self._run.depth

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return self._run.enter(tokens, first)

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return self._run.entered(tokens, layer)

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        entered = tokens
        for layer in range(first, self.depth if last is None else last):
            kind, place = self._kinds[layer]
            if place < RUN_OF_EACH_KIND or kind not in self._spent:
                with self._meter.part() as part:
                    tokens = self._run(tokens, layer, layer + 1)
                    part.leaving = (tokens.features,)
                self._spent[kind] = part.spent
            else:
                self._meter.repeat(self._spent[kind])
        if tokens is entered:
            tokens = tokens.with_features(torch.empty_like(tokens.features))  # what blocks give is new
        return tokens


class ForcedCodes(Mapping[int, Tensor]):
    """Codes of the forced passes of a plan: those that were given, and for others such as would be sampled."""

    def __init__(self, dry: DryModel, plan: Plan, given: Mapping[int, Tensor]) -> None:
        self._dry, self._given = dry, given
        self._forced = {step.index: step for step in plan.steps if step.forced}

    def __getitem__(self, index: int) -> Tensor:
        return self._given[index] if index in self._given else self._dry.codes(self._forced[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._forced)

    def __len__(self) -> int:
        return len(self._forced)


def to_meta(value: Any) -> Any:
    """A condition whose tensors have a shape and no data."""
    return map_tensors(value, lambda tensor: torch.empty_like(tensor, device=META))
