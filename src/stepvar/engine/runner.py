"""Which way a generation runs, and what is kept of earlier ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stepvar.core.noise import Noise, SeededNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.engine.graphs import FULL, CapturedGeneration, not_captured
from stepvar.engine.noise import NoiseTape
from stepvar.engine.request import Request
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods.base import Method
from stepvar.utils.tensors import signature

EngineName = Literal["auto", "eager", "graphs"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

SHARE = 0.35
"""Share of the device's memory that captured generations may hold together."""
MOST = 32
"""Captured generations that are kept at most."""
STALE = 4
"""One that was not replayed in so many times as many generations as are kept makes room for another."""
MOST_SEEN = 256
"""Kinds of generations that are remembered at most."""


class Engine:
    """Runs generations; with ``"graphs"`` it replays CUDA graphs of those that come again.

    The first generation of its kind (plan, method, sizes) runs eagerly and warms up every kernel, the second is
    captured, later ones are replayed, with whatever prompts and seeds. What cannot be captured runs eagerly; the
    report's ``engine`` says what ran and why.

    Args:
        name: ``"eager"``; ``"graphs"``, for CUDA only; or ``"auto"``: graphs on CUDA, eager elsewhere.
        memory: bytes that captured generations may hold together; None: a share of the device's memory.

    Raises:
        UsageError: for another name.
    """

    def __init__(self, name: EngineName = "auto", memory: int | None = None) -> None:
        if name not in ENGINES:
            raise UsageError(f"engine={name!r}: must be one of {', '.join(ENGINES)}")
        self.name = name
        self.memory = memory
        self._lock = threading.Lock()
        self._seen: OrderedDict[Hashable, CapturedGeneration | NoiseTape | str] = OrderedDict()
        self._count = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins with nothing captured: graphs belong to the tensors of one pipeline."""
        return Engine, (self.name, self.memory)

    def clear(self) -> None:
        """Drops all captured generations and their memory."""
        self._seen.clear()

    def warmup_runs(self, device: torch.device) -> int:
        """How many generations of a kind run before the times of the next ones are those that stay."""
        return 2 if self._replays(device) else 1

    def _replays(self, device: torch.device) -> bool:
        return self.name != "eager" and device.type == "cuda" and torch.version.hip is None

    def generate(
        self,
        model: Any,
        condition: Any,
        plan: Plan,
        method: Method,
        noise: Noise,
        forced: Mapping[int, Tensor] | None = None,
        recorder: Recorder | None = None,
        on_scale_end: Callable[[Step, Any], None] | None = None,
    ) -> Any:
        """As :func:`stepvar.generation.generate`; the state is valid until the next generation."""
        recorder = recorder or Recorder(model.device)
        if model.device.type == "cuda":  # padded alike, so that eager generations and replays are equal to the bit
            condition = model.stage(condition, plan, padded=True)
        request = Request(model, condition, plan, method, noise, forced or {}, recorder, on_scale_end)
        if not self._replays(model.device):
            if self.name == "graphs":
                where = "ROCm" if model.device.type == "cuda" else model.device.type
                raise UsageError(f"engine='graphs': needs a CUDA device, the model is on {where}; use 'auto'")
            return _eager(request, "eager")
        if model.offload is not None:
            return _eager(request, "eager: the weights are offloaded, and a graph needs them where they were")
        if not self._lock.acquire(blocking=False):  # another thread replays: its tensors are in use
            return _eager(request, "eager: another generation is running")
        try:
            return self._generate(request)
        finally:
            self._lock.release()

    @torch.inference_mode()
    def _generate(self, request: Request) -> Any:
        model, noise, recorder = request.model, request.noise, request.recorder
        key = _key(request)
        self._count += 1
        entry = self._seen.pop(key, None)
        why, tape = f"eager: {FULL}", None
        if entry is None:
            why, entry = "eager: first generation of its kind", (tape := NoiseTape(noise))
        elif isinstance(entry, NoiseTape):
            entry = self._capture(request, entry)
        if isinstance(entry, str):
            why = f"eager: {entry}"
        self._seen[key] = entry
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        try:
            if isinstance(entry, CapturedGeneration):
                recorder.engine, entry.used = "graphs", self._count
                return entry.replay(request, lambda nbytes: self._make_room(nbytes, model.device, entries=0))
            state = _eager(request if tape is None else replace(request, noise=tape), why)
        except torch.OutOfMemoryError:
            if not self._held() or any(step.split is not None for step in request.plan.steps):
                raise  # of two processes the other one would not begin again
            entry = None
            self.clear()
            _free_unused(model.device)
            if not isinstance(noise, SeededNoise):  # a generator has moved on: its numbers cannot be drawn again
                raise
        else:
            if tape is not None and recorder.plan is not None:
                tape.choice = recorder.plan.choice
            return state
        recorder.scales.clear()
        recorder.totals.clear()
        return _eager(request, "eager: memory ran out, captured generations were dropped")

    def _capture(self, request: Request, tape: NoiseTape) -> CapturedGeneration | NoiseTape | str:
        """The captured generation; its tape, if there is no room for one; or why there can be none."""
        device = request.model.device
        if not request.method.knows_counts:
            return f"{request.method} decides by the image how much is run"
        if not self._make_room(tape.nbytes, device):
            return tape
        _free_unused(device)
        try:
            captured = CapturedGeneration(request, tape)
        except RuntimeError as error:
            return not_captured(error, device)
        tape.nbytes = captured.nbytes
        return captured if self._make_room(captured.nbytes, device) else tape.free()

    def _make_room(self, nbytes: int, device: torch.device, entries: int = 1) -> bool:
        """Whether a captured generation of so many bytes may be kept, once others are dropped that are no longer used.

        Those in use stay: to drop them in turn would mean to capture all of them again and again.

        Args:
            entries: 0: the bytes are of an alternative of one that is kept already.
        """
        limit = self.memory or int(SHARE * torch.cuda.get_device_properties(device).total_memory)
        held = self._held()
        stale = [key for key, entry in held.items() if self._count - entry.used > STALE * len(held)]
        while held and (len(held) + entries > MOST or nbytes + sum(entry.nbytes for entry in held.values()) > limit):
            if not stale:
                return False
            del held[stale[0]], self._seen[stale.pop(0)]
        return True

    def _held(self) -> dict[Hashable, CapturedGeneration]:
        """Captured generations, the one that was not used for longest first."""
        return {key: entry for key, entry in self._seen.items() if isinstance(entry, CapturedGeneration)}


def _eager(request: Request, why: str) -> Any:
    """The generation without graphs; the report says why."""
    request.recorder.engine = why
    return generate(
        request.model,
        request.condition,
        request.plan,
        request.method,
        request.noise,
        request.forced,
        request.recorder,
        request.on_scale_end,
    )


def _key(request: Request) -> Hashable:
    """What generations have in common that one set of graphs serves."""
    model, method = request.model, request.method
    return (
        id(model),
        next(model.parameters()).data_ptr(),  # a model that was moved has other weights under the same name
        model.precision,
        repr(request.plan.settings),
        request.plan.samples,
        any(step.split is not None for step in request.plan.steps),
        (type(method), repr(method.settings())),
        type(request.noise),
        signature(request.condition),
        signature(dict(request.forced)),
    )


def _free_unused(device: torch.device) -> None:
    """Gives back what PyTorch's allocator holds unused: the pool of a graph cannot use it."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
