"""The one seam between methods and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Generic

from torch import Tensor
from typing_extensions import TypeVar

from stepvar.core.plan import Plan, Settings, Step, resolve
from stepvar.core.stack import ModelInfo, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.core.values import check_fields, shown
from stepvar.errors import UsageError

Stage = Callable[[float], "Method"]
"""From a share in [0, 1] of what may be saved to a method that saves it: a larger share never costs more."""


@dataclass
class MethodState:
    """What a method keeps during one generation; methods that remember more derive their own.

    Attributes:
        selections: by pass, the indices (R, K) of the tokens that were kept, one tensor for each selection; read by
            the report.
    """

    selections: dict[int, list[Tensor]] = field(default_factory=dict)

    def record(self, step: Step, kept: Tensor) -> None:
        """Notes the tokens (R, K) that a selection kept at a pass."""
        self.selections.setdefault(step.index, []).append(kept)


State = TypeVar("State", bound=MethodState, default=Any)


@dataclass(frozen=True)
class Method(Generic[State]):
    """An acceleration method; this base class is dense generation.

    A method is a frozen dataclass whose fields are its settings, checked and converted by their annotations (see
    :mod:`stepvar.core.values`); a ``__post_init__`` of its own calls this one first. It knows no model: it sees
    settings and a plan before the generation, and token maps during it. It may act on the schedule (:meth:`edit`),
    around the whole stack of blocks (:meth:`run_stack`) and around each residual sub-layer (:meth:`run_sublayer`).
    What it remembers from pass to pass is in the state that :meth:`start` makes, so that one method serves any number
    of generations.

    Attributes:
        name: on the command line and in reports.
        presets: settings by name, published ones or variants.
        neutral: settings with which the method is exactly dense; None if it has none.
        speedup_settings: settings that a requested speed-up decides; see :meth:`speedup_schedule`.
    """

    name: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None
    speedup_settings: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def edit(self, settings: Settings) -> Settings:
        """Changes which scales run, their guidance or their temperature."""
        return settings

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        """How many tokens run through block ``layer`` of ``depth`` at a pass.

        Asked when the plan is resolved, so it must follow from the step and its settings alone.
        """
        return step.grid.size

    def check(self, plan: Plan, info: ModelInfo) -> None:
        """Says whether the method can serve a plan on a model; called before any work.

        Raises:
            UsageError: if it cannot.
        """

    def plan(self, settings: Settings, info: ModelInfo, samples: int) -> Plan:
        """The plan of a generation with this method: settings edited, resolved and checked.

        Raises:
            UsageError: if the method cannot serve it.
        """
        edited = self.edit(settings)
        if not isinstance(edited, Settings):
            raise UsageError(f"method {str(self)!r}: edit() gave a {type(edited).__name__}; return the settings")
        plan = resolve(edited, samples, info.depth, self.tokens_at)
        for step in plan.steps:
            for count in set(step.tokens):
                if not isinstance(count, int) or not 1 <= count <= step.grid.size:
                    raise UsageError(
                        f"method {str(self)!r}: tokens_at() gave {shown(count)} at pass {step.index} ({step.grid}); "
                        f"give a whole number from 1 to {step.grid.size}"
                    )
        self.check(plan, info)
        return plan

    def start(self, plan: Plan) -> MethodState:
        """A new state for one generation."""
        return MethodState()

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: State) -> TokenMap:
        """Takes a dense map in front of the first block, returns a dense map behind the last one."""
        return run(tokens)

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: State) -> Tensor:
        """Returns the update (R, N, C) that the sub-layer adds to ``tokens``."""
        return run(tokens)

    def speedup_schedule(self, settings: Settings) -> Sequence[Stage]:
        """How the method saves work, the gentlest stage first: a search for a speed-up goes through them in order."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The method's own settings by name, for reports."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: repr(value) if is_dataclass(value) else value for name, value in values.items()}

    def acts_on_sublayers(self, step: Step) -> bool:
        """Whether the method does anything around the sub-layers of a pass; where it does not, models may fuse them."""
        return type(self).run_sublayer is not Method.run_sublayer

    @property
    def static(self) -> bool:
        """Whether the plan says all that the method will do, so that a captured generation can be replayed."""
        return True

    @property
    def acts_on_tokens(self) -> bool:
        """Whether the method does anything but edit settings."""
        acts = ("tokens_at", "run_stack", "run_sublayer")
        return any(getattr(type(self), act) is not getattr(Method, act) for act in acts)

    def __str__(self) -> str:
        return self.name
