"""Several methods in one generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState, Stage


@dataclass(frozen=True, init=False)
class Compose(Method):
    """Methods that act together: any number that edit settings, at most one that acts on tokens.

    ``Compose(StepVAR(keep=0.4), DropGuidance(last=2))``. Settings are edited in the order given, so that a later part
    sees what an earlier one left; parts that count scales from the end of the schedule do not depend on the order.
    Two parts that act on tokens would prune what the other has pruned, which no cache could be planned for.

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
        acting = [part.name for part in flat if part.acts_on_tokens]
        if len(acting) > 1:
            raise UsageError(f"compose: {' and '.join(acting)} all act on tokens; keep one of them")
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def acting(self) -> Method:
        """The part that acts on tokens; dense if there is none."""
        return next((part for part in self.parts if part.acts_on_tokens), Method())

    @property
    def varied(self) -> Method:
        """The part whose settings a speed-up decides: the one that acts on tokens, else the first."""
        return next((part for part in self.parts if part.acts_on_tokens), self.parts[0] if self.parts else Method())

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

    def start(self, plan: Plan) -> MethodState:
        return self.acting.start(plan)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: MethodState) -> TokenMap:
        return self.acting.run_stack(run, tokens, step, state)

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: MethodState) -> Tensor:
        return self.acting.run_sublayer(run, tokens, ref, step, state)

    def acts_on_sublayers(self, step: Step) -> bool:
        return self.acting.acts_on_sublayers(step)

    @property
    def static(self) -> bool:
        return all(part.static for part in self.parts)

    def settings(self) -> dict[str, Any]:
        return {part.name: part.settings() for part in self.parts}

    def __str__(self) -> str:
        return "+".join(map(str, self.parts)) or "dense"
