"""Several methods in one generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import Attention, AttentionInputs, ModelInfo, PassResult, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage

PLACES = {
    "tokens": "acts_on_tokens",
    "attention": "acts_on_attention",
    "the cache": "acts_on_cache",
    "which scales follow": "makes_a_choice",
}
"""Where one method at a time may act, and the property that tells whether one does."""


@dataclass
class ComposedState(MethodState):
    """The states of the parts by their names; the selections are those of the part that acts on tokens."""

    parts: dict[str, MethodState] = field(default_factory=dict)

    def use(self, noise: Noise) -> None:
        for state in self.parts.values():
            state.use(noise)


@dataclass(frozen=True, init=False)
class Compose(Method):
    """Methods that act together: any number that edit settings, and one at each other place.

    ``Compose(StepVAR(keep=0.4), DropGuidance(last=2))``. Settings are edited in the order given, so that a later part
    sees what an earlier one left; parts that count scales from the end of the schedule do not depend on the order.
    Two parts that act on tokens would prune what the other has pruned, which no cache could be planned for; likewise
    one part may act on attention, one on the cache, and one may choose which scales follow.

    Attributes:
        parts: the methods, in order; those of a composition inside are taken one by one.
    """

    name: ClassVar[str] = "compose"

    parts: tuple[Method, ...]

    def __init__(self, *parts: Method) -> None:
        flat: list[Method] = []
        for part in parts:
            if not isinstance(part, Method):
                raise UsageError(f"compose: {part!r} is no method; give methods such as StepVAR()")
            flat += part.parts if isinstance(part, Compose) else [part]
        names = [part.name for part in flat]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"compose: {name} is given {names.count(name)} times; give each method once")
        for place, acts in PLACES.items():
            acting = [part.name for part in flat if getattr(part, acts)]
            if len(acting) > 1:
                raise UsageError(f"compose: {' and '.join(acting)} all act on {place}; keep one of them")
        object.__setattr__(self, "parts", tuple(flat))

    def _at(self, place: str) -> Method:
        """The part that acts at a place; dense if there is none."""
        return next((part for part in self.parts if getattr(part, PLACES[place])), Method())

    @property
    def acting(self) -> Method:
        """The part that acts on tokens; dense if there is none."""
        return self._at("tokens")

    @property
    def varied(self) -> Method:
        """The part whose settings a speed-up decides: the one that acts on tokens, else the first that has some."""
        able = [part for part in self.parts if part.acts_on_tokens or part.speedup_settings]
        return next((part for part in able if part.acts_on_tokens), (*able, Method())[0])

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """That of the varied part, beside the others as they are."""
        varied = self.varied
        for part in self.parts:
            if part is not varied:
                settings = part.edit(settings)

        def beside(stage: Stage) -> Stage:
            return lambda share: Compose(*(stage(share) if part is varied else part for part in self.parts))

        return [beside(stage) for stage in varied.speedup_schedule(settings)]

    def edit(self, settings: Settings) -> Settings:
        for part in self.parts:
            settings = part.edit(settings)
        return settings

    def check(self, plan: Plan, info: ModelInfo) -> None:
        for part in self.parts:
            part.check(plan, info)

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.acting.tokens_at(step, layer, depth)

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return self._at("the cache").cached_tokens(step, layer, depth, keys)

    def keys_per_query(self, step: Step, layer: int, depth: int, keys: int) -> int:
        return self._at("attention").keys_per_query(step, layer, depth, keys)

    def alternatives(self, settings: Settings) -> tuple[int, Mapping[str, Settings]] | None:
        return self._at("which scales follow").alternatives(settings)

    def start(self, plan: Plan) -> ComposedState:
        states = {part.name: part.start(plan) for part in self.parts}
        acting = states.get(self.acting.name, MethodState())
        return ComposedState(acting.selections, acting.counts, parts=states)

    def _with_state(self, place: str, state: ComposedState) -> tuple[Method, MethodState]:
        part = self._at(place)
        return part, state.parts.get(part.name, state)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: ComposedState) -> TokenMap:
        part, own = self._with_state("tokens", state)
        return part.run_stack(run, tokens, step, own)

    def run_group(
        self, run: RunBlocks, maps: Sequence[TokenMap], steps: Sequence[Step], state: ComposedState
    ) -> Sequence[TokenMap]:
        part, own = self._with_state("tokens", state)
        return part.run_group(run, maps, steps, own)

    def run_sublayer(
        self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: ComposedState
    ) -> Tensor:
        part, own = self._with_state("tokens", state)
        return part.run_sublayer(run, tokens, ref, step, own)

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: ComposedState
    ) -> Tensor:
        part, own = self._with_state("attention", state)
        return part.run_attention(attend, inputs, ref, step, own)

    def select_cached(
        self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: ComposedState
    ) -> Tensor:
        part, own = self._with_state("the cache", state)
        return part.select_cached(inputs, count, ref, step, own)

    def code_mask(self, step: Step, state: ComposedState) -> Tensor | None:
        masks = (part.code_mask(step, state.parts[part.name]) for part in self.parts)
        found = [mask for mask in masks if mask is not None]
        return reduce(Tensor.logical_and, found) if found else None

    def after_pass(self, result: PassResult, step: Step, state: ComposedState) -> None:
        for part in self.parts:
            part.after_pass(result, step, state.parts[part.name])

    def decide(self, result: PassResult, step: Step, state: ComposedState) -> str:
        part, own = self._with_state("which scales follow", state)
        return part.decide(result, step, own)

    def acts_on_sublayers(self, step: Step) -> bool:
        return self.acting.acts_on_sublayers(step)

    @property
    def acts_on_tokens(self) -> bool:
        return any(part.acts_on_tokens for part in self.parts)

    @property
    def acts_on_attention(self) -> bool:
        return any(part.acts_on_attention for part in self.parts)

    @property
    def acts_on_cache(self) -> bool:
        return any(part.acts_on_cache for part in self.parts)

    @property
    def makes_a_choice(self) -> bool:
        return any(part.makes_a_choice for part in self.parts)

    @property
    def reads_results(self) -> bool:
        return any(part.reads_results for part in self.parts)

    @property
    def knows_counts(self) -> bool:
        return all(part.knows_counts for part in self.parts)

    def settings(self) -> dict[str, Any]:
        return {part.name: part.settings() for part in self.parts}

    def __str__(self) -> str:
        return "+".join(map(str, self.parts)) or "dense"
