"""CUDA graphs of a generation: one for its preparation, one for each pass.

A graph replays kernels without the host launching them one by one. Everything that a replay reads lies where it lay
when the graph was captured: the condition and the forced codes are copied into static tensors, random numbers are drawn
into the tensors of a :class:`~stepvar.engine.noise.NoiseTape`, caches and latents live in the pool of the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.engine.noise import NoiseTape
from stepvar.engine.static import copy_into, static_copy
from stepvar.generation import run_pass
from stepvar.methods.base import Method
from stepvar.utils.tensors import map_tensors

Result = TypeVar("Result")


class CapturedGeneration:
    """The graphs of one plan on one model, with one method; replayed for any prompts and seeds of the same sizes.

    Attributes:
        nbytes: what it holds on the device.
        used: the number of the generation that replayed it last.

    Args:
        staged: a condition on the device, as ``model.stage`` gives it.
        tape: what an eager generation of the same kind asked of its noise source.
        forced: indices or bits of the passes whose codes are given.

    Raises:
        RuntimeError: if something in a pass cannot be captured, such as a copy that waits for the device.
    """

    def __init__(
        self, model: Any, staged: Any, plan: Plan, method: Method, tape: NoiseTape, forced: Mapping[int, Tensor]
    ) -> None:
        self.plan = plan
        self.used = 0
        self.staged, self.forced = static_copy(staged), static_copy(dict(forced))
        self.tape = tape
        before = torch.cuda.memory_allocated(model.device)
        tape.allocate(model.device)
        self.pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(model.device)
        stream.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(stream):
            self.preparation, self.state = self._capture(lambda: model.begin(self.staged, plan))
            self.method_state = method.start(plan)
            self.method_state.use(tape)

            def run(step: Step) -> Tensor | None:
                given = self.forced.get(step.index)
                return run_pass(model, self.state, method, self.method_state, step, tape, given).total

            captured = [self._capture(partial(run, step)) for step in plan.steps]
        self.passes = [graph for graph, _ in captured]
        self.totals = [(step, total) for step, (_, total) in zip(plan.steps, captured, strict=True)]
        torch.cuda.current_stream(model.device).wait_stream(stream)
        self.nbytes = torch.cuda.memory_allocated(model.device) - before

    def _capture(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            graph.capture_end()
        return graph, result

    def replay(
        self,
        staged: Any,
        noise: Noise,
        forced: Mapping[int, Tensor],
        recorder: Recorder,
        on_scale_end: Callable[[Step, Any], None] | None,
    ) -> Any:
        """Generates with another condition and other random numbers."""
        with recorder.stage("prepare"):
            copy_into(self.staged, staged)
            copy_into(self.forced, dict(forced))
            self.preparation.replay()
        recorder.selections = self.method_state.selections
        for step, graph in zip(self.plan.steps, self.passes, strict=True):
            with recorder.scale(step):
                self.tape.fill(step.index, noise)
                graph.replay()
            if on_scale_end is not None:
                on_scale_end(step, self.state)
        # The next replay, perhaps of another thread, overwrites everything in the pool.
        recorder.selections = map_tensors(dict(recorder.selections), Tensor.clone)
        ran = [(step, total) for step, total in self.totals if total is not None]
        if ran:
            totals = torch.stack([total for _, total in ran]).unbind()
            recorder.totals = [(step, total) for (step, _), total in zip(ran, totals, strict=True)]
        return _with_own_tensors(self.state)


def _with_own_tensors(state: Any) -> Any:
    """The state of a generation, its latent and other tensors copied; the caches stay where they are."""
    own = copy(state)
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            setattr(own, name, value.clone())
    return own
