"""What a dense generation of one model takes on its device, in parts: measured once, on a few of its blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder, start_clock
from stepvar.core.tokens import TokenMap
from stepvar.generation import generate
from stepvar.methods.base import Method, RunBlocks
from stepvar.methods.baselines import Random
from stepvar.methods.pruning import FLOOR, LATE

Key = TypeVar("Key", int, str)

ROUNDS = 3
PATIENCE = 10.0
"""Seconds after which no further round is begun."""
BLOCKS_SECONDS = 2.0
"""Time that the dense blocks of one round may take: a large model is measured on the first few of them."""


@dataclass(frozen=True)
class Profile:
    """Seconds of a dense generation.

    Attributes:
        stack: of all blocks, by pass.
        thinned: of all blocks when the late passes keep a few random tokens (see :func:`thinning`), by pass.
        rest: of what else a pass does: embedding, head, sampling, codes.
        condition: of turning prompts into what the model reads: the text encoder.
        prepare: of what all passes share.
        decode: from the latent picture to pixels; 0 where decoding is not to count.
    """

    stack: Mapping[int, float]
    thinned: Mapping[int, float]
    rest: Mapping[int, float]
    condition: float
    prepare: float
    decode: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Profile:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if it is something else.
        """
        stack, thinned, rest = (
            {int(index): float(seconds) for index, seconds in values[part].items()}
            for part in ("stack", "thinned", "rest")
        )
        if not stack or not set(stack) == set(thinned) == set(rest) or not min(*stack.values(), *thinned.values()) > 0:
            raise ValueError("a profile needs the time of every pass")
        return cls(stack, thinned, rest, *(float(values[part]) for part in ("condition", "prepare", "decode")))


def thinning(plan: Plan) -> Method:
    """What shows how the time of the blocks follows the number of tokens: as few as a gentle budget keeps."""
    return Random(keep=FLOOR, last=plan.schedule.late_scales(LATE))


@dataclass(frozen=True)
class FirstBlocks:
    """A stack that ends early."""

    run: RunBlocks
    depth: int

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        return self.run(tokens, first, self.depth if last is None else last)


@dataclass(frozen=True)
class Probe(Method):
    """Runs a method on the first blocks only, and takes their time. What it draws means nothing.

    Attributes:
        method: that acts on the blocks.
        layers: how many.
        device: where.
        clocks: per pass, what reads its seconds.
    """

    method: Method = field(default_factory=Method)
    layers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clocks: dict[int, Callable[[], float]] = field(default_factory=dict)

    def tokens_at(self, step: Step, layer: int, depth: int) -> int:
        return self.method.tokens_at(step, layer, self.layers) if layer < self.layers else 0

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step) -> TokenMap:
        stop = start_clock(self.device)
        tokens = self.method.run_stack(FirstBlocks(run, self.layers), tokens, step)
        self.clocks[step.index] = stop()
        return tokens


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: see :class:`~stepvar.models.base.NextScaleModel`.
        plan: of a dense generation.
        samples: pictures drawn at once.
        encode: gives the condition of all samples, anew each time.
        words: the text encoder, by name; empty where its work is not part of the generation.
        decode: whether decoding is part of it.
    """

    model: Any
    plan: Plan
    samples: int
    encode: Callable[[], Any]
    words: str = ""
    decode: bool = True


@dataclass(frozen=True)
class Round:
    """One measurement, in seconds: of the blocks and the rest by pass, and of the stages."""

    stack: dict[int, float]
    rest: dict[int, float]
    stages: dict[str, float]


def measure_profile(of: Subject, layers: int, advance: Callable[[], None]) -> Profile:
    """The shortest time of every part over a few rounds: others on the machine can only make it longer.

    Args:
        layers: blocks to run; the time of all is taken to be in proportion.
        advance: called behind each of the :data:`ROUNDS`, also behind those left out.
    """
    rounds: list[Round] = []
    thinned: list[Round] = []
    begun = time.monotonic()
    for _ in range(ROUNDS):
        if not rounds or time.monotonic() - begun < PATIENCE:
            rounds.append(_round(of, Method(), layers, of.decode))
            thinned.append(_round(of, thinning(of.plan), layers, False))
        advance()
    return Profile(
        stack=_best([done.stack for done in rounds]),
        thinned=_best([done.stack for done in thinned]),
        rest=_best([done.rest for done in rounds]),
        **{"decode": 0.0, **_best([done.stages for done in rounds])},
    )


def _best(measured: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    return {key: min(one[key] for one in measured) for key in measured[0]}


def _round(of: Subject, method: Method, layers: int, decode: bool) -> Round:
    model, samples = of.model, of.samples
    probe, recorder = Probe(method, layers, model.device), Recorder(model.device)
    with recorder.stage("condition"):
        condition = of.encode()
    state = generate(model, condition, samples, of.plan, probe, SeededNoise(range(samples)), recorder)
    if decode:
        with recorder.stage("decode"):
            model.decode(state)
    report = recorder.report("", "probe", samples, model.dtype)
    part = {index: max(read(), 1e-9) for index, read in probe.clocks.items()}
    rest = {scale.index: max(scale.seconds - part[scale.index], 0.0) for scale in report.scales if scale.index in part}
    whole = model.info.depth / layers
    return Round({index: whole * seconds for index, seconds in part.items()}, rest, report.stages)
