"""The one seam between methods and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Generic

from torch import Tensor
from typing_extensions import TypeVar

from stepvar.core.noise import Noise
from stepvar.core.plan import Decision, Plan, Settings, Step
from stepvar.core.resolve import resolve
from stepvar.core.stack import Attention, AttentionInputs, ModelInfo, PassResult, RunBlocks, Sublayer, SublayerRef
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
        counts: by pass, how many tokens ran through the blocks, where only the image could say it.
        noise: random numbers tied to the seeds of the images, for methods that need some; set before the first pass.
        ahead: by pass, the maps behind the blocks of passes that ran together with an earlier one.
    """

    selections: dict[int, list[Tensor]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    noise: Noise | None = None
    ahead: dict[int, TokenMap] = field(default_factory=dict)

    def use(self, noise: Noise) -> None:
        """Hands over a source of random numbers."""
        self.noise = noise

    def record(self, step: Step, kept: Tensor) -> None:
        """Notes the tokens (R, K) that a selection kept at a pass."""
        self.selections.setdefault(step.index, []).append(kept)


State = TypeVar("State", bound=MethodState, default=Any)


@dataclass(frozen=True)
class Method(Generic[State]):
    """An acceleration method; this base class is dense generation.

    A method is a frozen dataclass whose fields are its settings, checked and converted by their annotations (see
    :mod:`stepvar.core.values`); a ``__post_init__`` of its own calls this one first. It knows no model: it sees
    settings and a plan before the generation, and token maps during it. It may act

    - on the schedule: :meth:`edit`, and :meth:`alternatives` where a choice has to wait for the image;
    - around the whole stack of blocks: :meth:`run_stack`, and :meth:`tokens_at` for how many tokens run;
    - around the blocks of several scales that run together, where :meth:`edit` groups them: :meth:`run_group`;
    - around each residual sub-layer: :meth:`run_sublayer`;
    - on the self-attention of each layer: :meth:`run_attention`, and :meth:`keys_per_query` for how much it computes;
    - on the cache behind it: :meth:`select_cached`, and :meth:`cached_tokens` for how many keys stay;
    - on what a pass leaves: :meth:`code_mask` and :meth:`after_pass`.

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

        Asked when the plan is resolved, so it must follow from the step and its settings alone. A method whose count
        follows from the image gives the most that may run, is not :attr:`static`, and says in the state's ``counts``
        how many did.
        """
        return step.grid.size

    def cached_tokens(self, step: Step, layer: int, depth: int, keys: int) -> int:
        """How many of the ``keys`` of a layer stay in the cache behind a pass; what leaves, no later pass sees.

        Asked when the plan is resolved. ``keys`` are those of the passes so far, without those of a text that some
        families keep in front. Only where all passes see all earlier ones (``kv_scope`` "all").
        """
        return keys

    def keys_per_query(self, step: Step, layer: int, depth: int, keys: int) -> int:
        """How many of the ``keys`` of a layer a token attends to at a pass, on average.

        Asked when the plan is resolved. ``keys`` are those that are there, without those of a text. It says what
        attention costs, to progress bars and to whoever compares plans; FLOPs are counted of what runs.
        """
        return keys

    def alternatives(self, settings: Settings) -> tuple[int, Mapping[str, Settings]] | None:
        """A pass and what may follow it, by name: :meth:`decide` chooses one behind that pass.

        Up to that pass all must do the same as ``settings``, and none may cost more. None: nothing is left to decide.
        """
        return None

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
        plan = self._resolve(edited, info, samples)
        found = self.alternatives(edited)
        if found is not None:
            after, choices = found
            plans = {
                name: replace(self._resolve(choice, info, samples), choice=name) for name, choice in choices.items()
            }
            plan = replace(plan, decision=Decision(after, plans))
        self.check(plan, info)
        return plan

    def _resolve(self, settings: Settings, info: ModelInfo, samples: int) -> Plan:
        cached = self.cached_tokens if self.acts_on_cache else None
        if cached is not None and settings.schedule.kv_scope != "all":
            scope = settings.schedule.kv_scope
            raise UsageError(
                f"method {str(self)!r}: drops keys that every later scale sees; here they see {scope!r} alone, the "
                "last pass of the clip before; use a method that prunes tokens, such as stepvar"
            )
        keys = self.keys_per_query if self.acts_on_attention else None
        plan = resolve(settings, samples, info.depth, self.tokens_at, cached, keys)
        check_counts(plan, str(self))
        check_groups(plan, self)
        return plan

    def start(self, plan: Plan) -> MethodState:
        """A new state for one generation."""
        return MethodState()

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: State) -> TokenMap:
        """Takes a dense map in front of the first block, returns a dense map behind the last one."""
        return run(tokens)

    def run_group(
        self, run: RunBlocks, maps: Sequence[TokenMap], steps: Sequence[Step], state: State
    ) -> Sequence[TokenMap]:
        """As :meth:`run_stack` for passes that run together: ``run`` takes their maps joined."""
        return run(TokenMap.joined(maps)).parts(maps)

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: State) -> Tensor:
        """Returns the update (R, N, C) that the sub-layer adds to ``tokens``."""
        return run(tokens)

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: State
    ) -> Tensor:
        """The self-attention of a layer: (R, heads, N, head_dim); ``attend`` is the model's own, to all keys."""
        return attend(inputs)

    def select_cached(self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: State) -> Tensor:
        """Which ``count`` keys of a layer stay behind its attention: ascending indices (R, kv_heads, count).

        Called where :meth:`cached_tokens` lets fewer stay than there are.
        """
        raise UsageError(f"method {str(self)!r}: cached_tokens() drops keys; define select_cached(), which says which")

    def code_mask(self, step: Step, state: State) -> Tensor | None:
        """The tokens (B, N), bool, whose codes are added to the image; None: those of all."""
        return None

    def after_pass(self, result: PassResult, step: Step, state: State) -> None:
        """Looks at what a pass left; nothing of it may be written into."""

    def decide(self, result: PassResult, step: Step, state: State) -> str:
        """The name of the one of :meth:`alternatives` that follows; called behind its pass.

        It may wait for the device, best once, and changes nothing of the state: what follows may have been captured.
        """
        raise UsageError(f"method {str(self)!r}: alternatives() leaves a choice; define decide(), which makes it")

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
        """Whether the plan says all that the method will do, so that images of a batch go the same way."""
        return self.knows_counts and not self.makes_a_choice

    @property
    def knows_counts(self) -> bool:
        """Whether :meth:`tokens_at` gives what runs, rather than the most that may; passes can then be captured."""
        return True

    def _overrides(self, *names: str) -> bool:
        """Whether the class has its own form of one of these methods of this one."""
        return any(getattr(type(self), name) is not getattr(Method, name) for name in names)

    @property
    def acts_on_tokens(self) -> bool:
        """Whether the method changes which tokens run through the blocks."""
        return self._overrides("tokens_at", "run_stack", "run_sublayer")

    @property
    def acts_on_attention(self) -> bool:
        """Whether the method changes the self-attention."""
        return self._overrides("run_attention")

    @property
    def acts_on_cache(self) -> bool:
        """Whether keys and values leave the cache."""
        return self._overrides("cached_tokens")

    @property
    def makes_a_choice(self) -> bool:
        """Whether it is decided while the image is generated which scales follow."""
        return self._overrides("alternatives")

    @property
    def reads_results(self) -> bool:
        """Whether the method looks at what passes leave."""
        return self._overrides("after_pass", "alternatives")

    def __str__(self) -> str:
        return self.name


def check_counts(plan: Plan, method: str) -> None:
    """Checks the counts that a method gave for a plan.

    Raises:
        UsageError: if one is impossible.
    """
    for step in plan.steps:
        for count in set(step.tokens):
            if not isinstance(count, int) or not 1 <= count <= step.grid.size:
                raise UsageError(
                    f"method {method!r}: tokens_at() gave {shown(count)} at pass {step.index} ({step.grid}); "
                    f"give a whole number from 1 to {step.grid.size}"
                )
        for gone, keys in zip(step.dropped, plan.attended(step), strict=False):
            if not isinstance(gone, int) or not 0 <= gone < keys:
                raise UsageError(
                    f"method {method!r}: cached_tokens() gave {shown(keys - gone)} at pass {step.index} ({step.grid}); "
                    f"give a whole number from 1 to {keys}"
                )
        for count, keys in zip(step.keys_per_query, plan.attended(step), strict=False):
            if not isinstance(count, int) or not 1 <= count <= keys:
                raise UsageError(
                    f"method {method!r}: keys_per_query() gave {shown(count)} at pass {step.index} ({step.grid}); "
                    f"give a whole number from 1 to {keys}"
                )


def check_groups(plan: Plan, method: Method) -> None:
    """Checks that passes which are to run together can.

    Raises:
        UsageError: if they cannot.
    """
    groups = [step.together for step in plan.steps if step.together]
    if not groups:
        return
    if method.acts_on_attention or method.acts_on_cache:
        raise UsageError(f"method {str(method)!r}: scales that run together keep the model's attention and cache")
    if plan.schedule.kv_scope != "all" or any(place != 0 for place in plan.settings.cfg_layers):
        raise UsageError(
            f"method {str(method)!r}: runs scales together, which needs scales that see all earlier ones and guidance "
            "on the logits; leave cfg_layers at 0, or take another method"
        )
    for group in groups:
        if len({(step.branches, step.first_row) for step in group}) > 1:
            grids = ", ".join(str(step.grid) for step in group)
            raise UsageError(
                f"method {str(method)!r}: the scales {grids} run together, so guidance ends at all of them or at none"
            )
