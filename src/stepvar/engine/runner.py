"""Which way a generation runs, and what is kept of earlier ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.engine.graphs import CapturedGeneration
from stepvar.engine.noise import NoiseTape
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods.base import Method
from stepvar.utils.tensors import signature

EngineName = Literal["auto", "eager", "graphs"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

SHARE = 0.35
"""Share of the device's memory that captured generations may hold together."""
MOST = 8
"""Captured generations that are kept at most."""


class Engine:
    """Runs generations; with ``"graphs"`` it replays CUDA graphs of those that come again.

    The first generation of its kind (plan, method, sizes) runs eagerly and warms up every kernel, the second is
    captured, later ones are replayed, with whatever prompts and seeds. What cannot be captured runs eagerly; the
    report's ``engine`` says what ran and why.

    Args:
        name: ``"eager"``; ``"graphs"``; or ``"auto"``, which is eager until replays have been verified on more GPUs.
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

    def clear(self) -> None:
        """Drops all captured generations and their memory."""
        self._seen.clear()

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
        if self.name != "graphs":
            recorder.engine = "eager"
            return generate(model, condition, plan, method, noise, forced, recorder, on_scale_end)
        if model.device.type != "cuda":
            raise UsageError(f"engine='graphs': needs a CUDA device, the model is on {model.device.type}; use 'auto'")
        if not self._lock.acquire(blocking=False):  # another thread replays: its tensors are in use
            recorder.engine = "eager: another generation is running"
            return generate(model, condition, plan, method, noise, forced, recorder, on_scale_end)
        try:
            return self._generate(model, condition, plan, method, noise, forced or {}, recorder, on_scale_end)
        finally:
            self._lock.release()

    @torch.inference_mode()
    def _generate(
        self,
        model: Any,
        staged: Any,
        plan: Plan,
        method: Method,
        noise: Noise,
        forced: Mapping[int, Tensor],
        recorder: Recorder,
        on_scale_end: Callable[[Step, Any], None] | None,
    ) -> Any:
        key = self._key(model, staged, plan, method, noise, forced)
        entry = self._seen.pop(key, None)
        if isinstance(entry, NoiseTape):
            entry = self._capture(model, staged, plan, method, entry, forced)
        if entry is None:
            recorder.engine = "eager: first generation of its kind"
            noise = entry = NoiseTape(noise)
        elif isinstance(entry, str):
            recorder.engine = f"eager: {entry}"
        self._seen[key] = entry
        self._evict(model.device)
        if isinstance(entry, CapturedGeneration):
            recorder.engine = "graphs"
            return entry.replay(staged, noise, forced, recorder, on_scale_end)
        return generate(model, staged, plan, method, noise, forced, recorder, on_scale_end)

    def _capture(
        self, model: Any, staged: Any, plan: Plan, method: Method, tape: NoiseTape, forced: Mapping[int, Tensor]
    ) -> CapturedGeneration | str:
        """The captured generation, or why there is none."""
        if not method.static:
            return f"{method} decides token counts at run time"
        self._make_room(model.device)
        try:
            return CapturedGeneration(model, staged, plan, method, tape, forced)
        except RuntimeError as error:  # whatever the driver refuses; the image is generated all the same
            torch.cuda.synchronize(model.device)
            return f"not captured ({' '.join(str(error).split())[:200]})"

    def _key(
        self, model: Any, staged: Any, plan: Plan, method: Method, noise: Noise, forced: Mapping[int, Tensor]
    ) -> Hashable:
        settings = (type(method), repr(method.settings()))
        return (
            id(model),
            model.precision,
            repr(plan.settings),
            plan.samples,
            settings,
            type(noise),
            signature(staged),
            signature(dict(forced)),
        )

    def _limit(self, device: torch.device) -> int:
        return self.memory or int(SHARE * torch.cuda.get_device_properties(device).total_memory)

    def _evict(self, device: torch.device) -> None:
        """Drops the captured generations that were not used for longest, as far as they are too many or too large."""
        held = [(key, entry) for key, entry in self._seen.items() if isinstance(entry, CapturedGeneration)]
        total = sum(entry.nbytes for _, entry in held)
        while len(held) > 1 and (len(held) > MOST or total > self._limit(device)):
            key, entry = held.pop(0)
            total -= entry.nbytes
            del self._seen[key]
        while len(self._seen) > 64:
            self._seen.popitem(last=False)

    def _make_room(self, device: torch.device) -> None:
        """Frees what PyTorch's allocator holds unused: the pool of a graph cannot use it."""
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
