"""From a requested speed-up to the settings of a method, by measuring a few of them on the device.

Dense generation and the method's harshest settings are measured first. Every pass is timed by itself, so the time of
settings in between is interpolated pass by pass; what comes out is measured, too, until measuring it would change
little. Nothing is assumed of how the time of a block depends on its tokens but that more of them never take less: the
figures are as right with compiled or fused blocks as with others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log
from typing import Any, Literal, Protocol, get_args

import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings
from stepvar.core.report import Recorder, Report
from stepvar.core.values import COUNT, Range, number, whole_number
from stepvar.cost.auto import Choice, choices
from stepvar.cost.store import load, save
from stepvar.cost.timings import Timings
from stepvar.errors import UsageError
from stepvar.methods import Compose, as_method
from stepvar.methods.base import Method, Stage
from stepvar.methods.registry import AUTO
from stepvar.models.inputs import EncodedInputs, InputProcessor
from stepvar.text import CachedEncoder, example_prompt
from stepvar.utils.device import device_name
from stepvar.utils.progress import bar

Scope = Literal["image", "scales"]

ROUNDS = 3
"""How often each setting is measured."""
PATIENCE = 20.0
"""Seconds after which no further round is begun."""
REFINEMENTS = 3
"""How often settings that were found are measured, to find better ones."""
NEAR = 0.05
"""Settings this far from what was asked, as a share, are said to be only near it."""
HALVINGS = 14


class Measurable(Protocol):
    """What is asked of a pipeline."""

    name: str
    model: Any
    inputs: InputProcessor
    text_encoder: Any
    tile: int | None
    sliced: bool
    engine: Any

    @property
    def device(self) -> torch.device: ...

    def settings(self) -> Settings: ...


@dataclass(frozen=True)
class Fitted:
    """A method whose settings meet a speed-up, as far as can be told before it runs.

    Attributes:
        method: with its settings.
        asked: the speed-up.
        expected: what is expected of the method.
        scope: what the speed-up is of: a whole ``"image"``, from prompt to pixels, or the loop over ``"scales"``.
        dense_seconds: how long that takes without a method.
        loop: what is expected of the loop over scales alone.
        reason: why the method was chosen, where ``"auto"`` was asked for.
    """

    method: Method
    asked: float
    expected: float
    scope: Scope
    dense_seconds: float
    loop: float
    reason: str = ""

    @property
    def is_near_only(self) -> bool:
        """Whether the method can do no better than come near: one whose settings are whole scales."""
        return abs(self.expected / self.asked - 1) > NEAR

    @property
    def found(self) -> dict[str, Any]:
        """The settings that the speed-up decided, of the method or of the part of a composition that varies."""
        varied = self.method.varied if isinstance(self.method, Compose) else self.method
        return {name: getattr(varied, name) for name in varied.speedup_settings}

    def to_dict(self) -> dict[str, Any]:
        asked = {"asked_speedup": self.asked, "expected_speedup": self.expected, "speedup_of": self.scope}
        chosen = {"chosen": f"{self.method}: {self.reason}"} if self.reason else {}
        return asked | chosen | {"settings": self.method.settings()}

    def __str__(self) -> str:
        near = "; the nearest that it can do" if self.is_near_only else ""
        found = ", ".join(f"{name}={value}" for name, value in self.found.items())
        said = f"{self.asked:g} times as fast asked of the {self.scope}, {self.expected:.2f} expected{near} ({found})"
        return f"{said}\n{AUTO}: {self.method}, {self.reason}" if self.reason else said


def fit_speedup(
    pipe: Measurable,
    speedup: float,
    method: Method | str = "stepvar",
    settings: Settings | None = None,
    samples: int = 1,
    scope: Scope = "image",
    *,
    progress: bool = True,
) -> Fitted:
    """Settings of a method that make a generation this many times as fast as dense.

    What was measured is kept for the next time.

    Args:
        pipe: a pipeline.
        speedup: 1 or more.
        method: whose settings are to be found; those that the speed-up does not decide are kept. A composition varies
            the part that acts on tokens. ``"auto"``: the best one for the model, see :mod:`stepvar.cost.auto`.
        settings: of the dense generation; None: the pipeline's own.
        samples: images generated at once.
        scope: what the speed-up is of; see :class:`Fitted`.
        progress: whether to show a bar while measuring, on a terminal only.

    Raises:
        UsageError: for a method that saves nothing, or a speed-up that cannot be had; it names the largest.
    """
    speedup = number("speedup", speedup, Range(above=0, most=1000))
    if scope not in get_args(Scope):
        raise UsageError(f"scope={scope!r}: must be one of {', '.join(get_args(Scope))}")
    if method == AUTO:
        return _fit_best(pipe, speedup, settings, samples, scope, progress)
    search = Search(
        pipe, as_method(method), settings or pipe.settings(), whole_number("samples", samples, COUNT), scope
    )
    if not search.stages:
        raise UsageError(f"speedup={speedup:g}: {nothing_to_find(search.method)}; choose another")
    with bar("measuring", None, progress) as advance:
        search.measure_ends(advance)
        fitted = search.fit(speedup)
        for _ in range(REFINEMENTS):
            if search.timings.is_known(search.plan(fitted.method)):
                break
            search.measure([fitted.method], advance)  # as often as the ends: the shortest of more times is shorter
            fitted = search.fit(speedup)
    return fitted


def nothing_to_find(method: Method) -> str:
    """Why no settings of a method can be sought for a speed-up."""
    if method.static:
        return f"method {str(method)!r} has nothing to spare"
    return f"method {str(method)!r} decides by the image what is run, so how much it saves is not known before"


def _fit_best(
    pipe: Measurable, speedup: float, settings: Settings | None, samples: int, scope: Scope, progress: bool
) -> Fitted:
    """Settings of the best method that can serve the speed-up; arguments as for :func:`fit_speedup`.

    Methods were compared at costs of the loop, which has to gain more than the image. So where the first fit shows that
    another comparison is nearer, that one decides.

    Raises:
        UsageError: if none can, as the best one says it.
    """

    def first_of(offered: Sequence[Choice]) -> Fitted:
        refused: UsageError | None = None
        for choice in offered if speedup >= 1 else offered[:1]:  # below 1 none can
            try:
                fitted = fit_speedup(pipe, speedup, choice.method, settings, samples, scope, progress=progress)
            except UsageError as error:
                refused = refused or error
                continue
            return replace(fitted, reason=choice.reason)
        assert refused is not None  # no table is empty
        raise refused

    offered = choices(pipe.name, speedup)
    fitted = first_of(offered)
    nearer = choices(pipe.name, fitted.loop)
    return fitted if nearer[0].cost == offered[0].cost else first_of(nearer)


def measure_ahead(
    pipe: Measurable,
    method: Method | str = "stepvar",
    settings: Settings | None = None,
    samples: int = 1,
    *,
    progress: bool = True,
) -> Search:
    """Measures again what :func:`fit_speedup` needs, also for speed-ups in between; arguments as there.

    Raises:
        UsageError: for a method that saves nothing.
    """
    search = Search(pipe, as_method(method), settings or pipe.settings(), samples, "image", Timings())
    if not search.stages:
        raise UsageError(f"{nothing_to_find(search.method)}; choose another")
    with bar("measuring", None, progress) as advance:
        search.measure_ends(advance)
        search.measure([stage(0.5) for stage in search.stages], advance)
    return search


class Search:
    """A search for the settings of a method; arguments as for :func:`fit_speedup`.

    Attributes:
        timings: what was measured so far.
    """

    dense = Method()

    def __init__(
        self,
        pipe: Measurable,
        method: Method,
        settings: Settings,
        samples: int,
        scope: Scope,
        timings: Timings | None = None,
    ) -> None:
        """
        Args:
            timings: to begin with; None: what earlier searches kept.
        """
        self.pipe, self.method, self.settings, self.samples, self.scope = pipe, method, settings, samples, scope
        self.stages: list[Stage] = list(method.speedup_schedule(settings))
        self.timings = timings or _kept(self.key)

    def plan(self, method: Method) -> Plan:
        return method.plan(self.settings, self.pipe.model.info, self.samples)

    def seconds(self, method: Method) -> float:
        """Expected time of what the speed-up is of."""
        fixed = sum(self.timings.stages.values()) if self.scope == "image" else 0.0
        return fixed + self.timings.seconds(self.plan(method))

    def speedup(self, method: Method) -> float:
        return self.seconds(self.dense) / self.seconds(method)

    def fit(self, asked: float) -> Fitted:
        """Searches the stages of the method, the gentlest first.

        Raises:
            UsageError: if no setting of the method reaches the speed-up; the error names the largest that can be had.
        """
        reach = max(self.speedup(stage(1.0)) for stage in self.stages)
        if not isfinite(asked) or asked < 1:
            most = int(100 * reach) / 100  # never more than can be asked for
            raise UsageError(f"speedup={asked:g}: must be at least 1, and with {self.method} here at most {most:.2f}")
        candidates: list[Method] = []
        for stage in self.stages:
            candidates += self._around(asked, stage)
            if self.speedup(candidates[-1]) >= asked:
                break
        best = min(candidates, key=lambda candidate: _distance(self.speedup(candidate), asked))
        expected = self.speedup(best)
        if asked > reach and _distance(expected, asked) > log(1.001):
            stays = "early scales, text and decoding" if self.scope == "image" else "early scales"
            raise UsageError(
                f"speedup={asked:g}: with {self.method} at most {int(100 * reach) / 100:.2f} can be had here, "
                f"since {stays} stay; ask for less, or choose another method"
            )
        loop = self.timings.seconds(self.plan(self.dense)) / self.timings.seconds(self.plan(best))
        return Fitted(best, asked, expected, self.scope, self.seconds(self.dense), loop)

    def _around(self, asked: float, stage: Stage) -> list[Method]:
        """The methods of a stage just below and just above a speed-up; the last one is the faster."""
        if self.speedup(stage(1.0)) < asked:
            return [stage(1.0)]
        if self.speedup(stage(0.0)) >= asked:
            return [stage(0.0)]
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self.speedup(stage(middle)) < asked:
                low = middle
            else:
                high = middle
        return [stage(low), stage(high)]

    def measure_ends(self, advance: Callable[[], None]) -> None:
        """Measures dense generation and the harshest settings, unless that was done before."""
        ends = [self.dense, *(stage(1.0) for stage in self.stages[-1:])]
        decoded = self.scope == "scales" or "decode" in self.timings.stages
        if not decoded or not all(self.timings.is_known(self.plan(method)) for method in ends):
            self.measure(ends, advance)

    def measure(self, methods: Sequence[Method], advance: Callable[[], None]) -> None:
        """Runs each method a few times, forwards and backwards in turn, and keeps the shortest time of each part."""
        begun = time.monotonic()
        for turn in range(ROUNDS):
            if turn and time.monotonic() - begun > PATIENCE:
                break
            for method in methods[:: 1 if turn % 2 == 0 else -1]:
                plan = self.plan(method)
                self.timings.add(plan, self._generate(plan, method))
                advance()
        save("speedup", self.key, self.timings.to_dict())

    def _generate(self, plan: Plan, method: Method) -> Report:
        """One generation, which is decoded if no method acts and its pixels count."""
        pipe, recorder = self.pipe, Recorder(self.pipe.device)
        whole = method == self.dense and self.scope == "image"
        if isinstance(pipe.text_encoder, CachedEncoder):
            pipe.text_encoder.clear()
        with recorder.stage("condition"):
            condition = self._encoded(plan).condition
        noise = SeededNoise(range(self.samples))
        state = pipe.engine.generate(pipe.model, condition, plan, method, noise, recorder=recorder)
        if whole:
            with recorder.stage("decode"):
                pipe.model.decode(state, pipe.tile, pipe.sliced)
        return recorder.report("", str(method), self.samples, pipe.model.dtype)

    def _encoded(self, plan: Plan) -> EncodedInputs:
        inputs = self.pipe.inputs
        wanted = inputs.example(schedule=plan.schedule)
        if self.pipe.text_encoder is not None:
            wanted = replace(wanted, prompt=example_prompt(self.pipe.text_encoder), prompt_embeds=None)
        return inputs.prepare(wanted, self.samples).encode(plan.schedule, ())

    @property
    def key(self) -> dict[str, str]:
        """What the times depend on."""
        pipe, device, settings = self.pipe, self.pipe.device, self.settings
        model, encoder, steps = pipe.model, pipe.text_encoder, self.plan(self.dense).steps
        passes = [(str(step.grid), step.branches, step.computed, bool(step.top_k)) for step in steps]
        return {
            "device": f"{device.type}: {device_name(device)}",
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
            "model": f"{type(model).__name__}: {model.config!r}",
            "precision": repr(model.precision),
            "engine": pipe.engine.name,
            "passes": repr(passes),
            "kv_scope": settings.schedule.kv_scope,
            "sampling": repr((settings.cfg_layers, bool(settings.top_p), bool(settings.smooth))),
            "samples": str(self.samples),
            "tile": str(pipe.tile) + (", sliced" if pipe.sliced else ""),
            "offload": "" if model.offload is None else f"{model.offload.name} {model.offload.blocks_on_device}",
            "text": "" if encoder is None else type(getattr(encoder, "encoder", encoder)).__name__,
            "method": repr(self.method),
        }


def _kept(key: dict[str, str]) -> Timings:
    """What earlier searches measured; nothing if their file is damaged."""
    try:
        return Timings.from_dict(load("speedup", key) or {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return Timings()


def _distance(speedup: float, asked: float) -> float:
    return abs(log(speedup / asked))
