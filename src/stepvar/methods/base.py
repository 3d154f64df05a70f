"""The one seam between methods and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError


class RunBlocks(Protocol):
    """Runs transformer blocks ``first`` to ``last`` (exclusive; None: the end) on a token map, dense or thinned."""

    @property
    def depth(self) -> int: ...

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap: ...


class SublayerRef(NamedTuple):
    """A residual sub-layer: its block's index, ``"self"``, ``"cross"`` or ``"ffn"``, and the number of blocks."""

    layer: int
    name: str
    depth: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What a method may ask of a model before a generation, to say whether it can serve it.

    Attributes:
        depth: number of blocks.
        sublayers: names of the residual sub-layers of a block, in order; ``"cross"`` attends to a text.
    """

    depth: int
    sublayers: tuple[str, ...] = ("self", "cross", "ffn")


Stage = Callable[[float], "Method"]
"""From a share in [0, 1] of what may be spared to a method that spares it: a larger share never costs more."""

OwnMethod = TypeVar("OwnMethod", bound="Method")


@dataclass(frozen=True)
class Method:
    """An acceleration method; this base class is dense generation.

    A method is a frozen dataclass whose fields are its settings. It knows no model: it sees a plan before the
    generation, and token maps during it. It may act on the schedule (:meth:`edit`), around the whole stack of
    blocks (:meth:`run_stack`) and around each residual sub-layer (:meth:`run_sublayer`).

    Attributes:
        name: on the command line and in reports.
        presets: published settings by name.
        neutral: settings with which the method is exactly dense; None if it has none.
        budgeted: settings that a budget decides; see :meth:`for_speedup`.
    """

    name: ClassVar[str] = "dense"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None
    budgeted: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def for_speedup(cls: type[OwnMethod], speedup: float, model: Any, **settings: Any) -> OwnMethod:
        """The method that makes a whole image, from prompt to pixels, this many times as fast as a dense one.

        See :func:`stepvar.cost.plan_speedup` for more: other schedules, several images, compositions, and what the
        speed-up is expected to be.

        Args:
            speedup: 1 or more.
            model: a pipeline, or a model alone. It is measured on the first use.
            settings: of the method, except those of :attr:`budgeted`.

        Raises:
            UsageError: for a setting that the budget decides, or a speed-up that cannot be had; it names the largest.
        """
        from stepvar.cost.calibration import plan_speedup

        for name in cls.budgeted:
            if name in settings:
                raise UsageError(f"{name}: the speed-up decides it; leave it out, or give no speed-up")
        fitted = plan_speedup(speedup, model, cls(**settings)).method
        assert isinstance(fitted, cls)  # stages change settings, not methods
        return fitted

    def stages(self, plan: Plan) -> Sequence[Stage]:
        """How the method spares work, the gentlest stage first: what a budget searches, in this order."""
        return ()

    def extra_passes(self, step: Step, info: ModelInfo) -> float:
        """How often the method itself reads or writes a dense map at a scale, for the estimate of its own cost."""
        return 0.0

    def edit(self, plan: Plan) -> Plan:
        """Changes which scales run, their guidance or their temperature."""
        return plan

    def check(self, plan: Plan, info: ModelInfo) -> None:
        """Says whether the method can serve a plan (as edited) on a model; called before any work.

        Raises:
            UsageError: if it cannot.
        """

    def prepare(self, plan: Plan, info: ModelInfo) -> Plan:
        """The plan as the method edits it, checked.

        Raises:
            UsageError: if the method cannot serve it.
        """
        plan = self.edit(plan)
        self.check(plan, info)
        return plan

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        """Tokens that block ``layer`` of ``depth`` will attend from at this scale.

        Asked before the generation starts, to size the caches, so it must follow from the plan alone.
        """
        return step.grid.size

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        """Takes a dense map in front of the first block, returns a dense map behind the last one."""
        return run(tokens)

    def run_sublayer(self, run: Callable[[TokenMap], Tensor], tokens: TokenMap, ref: SublayerRef, step: Step) -> Tensor:
        """Returns the update (R, N, C) that the sub-layer adds to ``tokens``."""
        return run(tokens)

    def settings(self) -> dict[str, Any]:
        """The settings by name, for reports."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: repr(value) if is_dataclass(value) else value for name, value in values.items()}

    @property
    def acts_on_tokens(self) -> bool:
        """Whether the method does anything but edit the plan."""
        acts = ("tokens_at", "run_stack", "run_sublayer")
        return any(getattr(type(self), act) is not getattr(Method, act) for act in acts)

    def __str__(self) -> str:
        return self.name
