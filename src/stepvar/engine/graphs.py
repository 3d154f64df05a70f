"""CUDA graphs of a generation: one for its preparation, one for each pass.

A graph replays kernels without the host launching them one by one. Everything that a replay reads lies where it lay
when the graph was captured: the condition and the forced codes are copied into static tensors, random numbers are drawn
into the tensors of a :class:`~stepvar.engine.noise.NoiseTape`, caches and latents live in the pool of the graphs.

Where the method decides by the image which passes follow, there are graphs of the passes up to the decision, and behind
it of those of each alternative. The decision itself is made between two replays, by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import PassResult
from stepvar.engine.noise import NoiseTape
from stepvar.engine.request import Request
from stepvar.engine.static import copy_into, forked, static_copy
from stepvar.generation import Ran, run_pass
from stepvar.methods.base import MethodState
from stepvar.methods.contract import blaming, chosen_plan, decided_plan
from stepvar.utils.tensors import map_tensors

FULL = "captured generations in use fill the memory that is kept for them"

Result = TypeVar("Result")
Capture = Callable[[Callable[[], Ran]], tuple[torch.cuda.CUDAGraph, Ran]]


class Passes:
    """Passes that follow each other, run eagerly.

    Args:
        state, method_state: of the model and of the method, in front of the first of them.
        noise: where their random numbers come from.
    """

    def __init__(self, request: Request, state: Any, method_state: MethodState, noise: Noise) -> None:
        self.request, self.state, self.method_state = request, state, method_state
        method_state.use(noise)
        self._noise = noise

    def run(self, step: Step, noise: Noise) -> Tensor | None:
        """Runs one pass, and gives the sum that it leaves (see :class:`~stepvar.generation.Ran`).

        Args:
            noise: of this generation, for passes that were captured in another one.
        """
        with blaming(self.request.method):
            return self.compute(step).total

    def compute(self, step: Step) -> Ran:
        """What every run of a pass does."""
        given = self.request.forced.get(step.index)
        return run_pass(
            self.request.model, self.state, self.request.method, self.method_state, step, self._noise, given
        )


class CapturedPasses(Passes):
    """Passes that are captured, and run again with other numbers.

    Attributes:
        tape: the tensors that their random numbers are drawn into.
    """

    def __init__(self, request: Request, state: Any, method_state: MethodState, tape: NoiseTape) -> None:
        super().__init__(request, state, method_state, tape)
        self.tape = tape
        self.totals: dict[int, Tensor | None] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self, step: Step, capture: Capture) -> PassResult | None:
        """Captures the pass that comes next, and gives what it leaves, which every replay overwrites."""
        self._graphs[step.index], (self.totals[step.index], result) = capture(lambda: self.compute(step))
        return result

    def run(self, step: Step, noise: Noise) -> Tensor | None:
        self.tape.fill(step.index, noise)
        self._graphs[step.index].replay()
        return self.totals[step.index]


class CapturedGeneration:
    """The graphs of one plan on one model, with one method; replayed for any prompts and seeds of the same sizes.

    Of the alternatives that a method decides between, each runs eagerly the first time that it is chosen, and is
    captured the second time, if there is room: until then nobody knows which random numbers it asks for, nor are its
    kernels compiled.

    Attributes:
        nbytes: what it holds on the device.
        used: the number of the generation that replayed it last.
        first: the passes up to the decision; all, if there is none.
        branches: those behind it, by what was decided: captured; recorded in their first run, and not captured since,
            or for want of room; or why they cannot be captured.

    Args:
        request: a generation of the kind, whose condition is staged.
        tape: what an eager one asked of its noise source.

    Raises:
        RuntimeError: if something in a pass cannot be captured, such as a copy that waits for the device.
    """

    def __init__(self, request: Request, tape: NoiseTape) -> None:
        self.plan = plan = request.plan
        self.used = self.nbytes = 0
        self.staged, self.forced = static_copy(request.condition), static_copy(dict(request.forced))
        self.branches: dict[str, CapturedPasses | NoiseTape | str] = {}
        self._own = replace(request, condition=self.staged, forced=self.forced)
        self._pool = torch.cuda.graph_pool_handle()
        last = plan.steps[-1].index if plan.decision is None else plan.decision.after
        with self._capturing():
            tape.allocate(request.model.device)
            self._preparation, state = self._capture(lambda: request.model.begin(self.staged, plan))
            self.first = CapturedPasses(self._own, state, request.method.start(plan), tape)
            results = [self.first.capture(step, self._capture) for step in plan.steps if step.index <= last]
        self._result = results[-1] if plan.decision is not None else None
        if tape.choice is not None:
            self.branches[tape.choice] = self._captured(chosen_plan(plan, tape.choice, request.method), tape)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Within it work goes to a stream of its own, and what it leaves on the device is counted."""
        device = self._own.model.device
        before = torch.cuda.memory_allocated(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream(device).wait_stream(stream)
        self.nbytes += torch.cuda.memory_allocated(device) - before

    def _capture(self, work: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            graph.capture_end()
        return graph, result

    def replay(self, request: Request, has_room: Callable[[int], bool] = lambda nbytes: True) -> Any:
        """Generates with another condition and other random numbers; the recorder is told what ran eagerly, and why.

        Args:
            has_room: whether so many bytes more may be held, by an alternative that is captured here.
        """
        recorder, plan = request.recorder, self.plan
        passes: Passes = self.first
        with recorder.stage("prepare"):
            copy_into(self.staged, request.condition)
            copy_into(self.forced, dict(request.forced))
            self._preparation.replay()
        recorder.selections = passes.method_state.selections
        steps = list(plan.steps)
        while steps:
            step = steps.pop(0)
            decides = plan.decision is not None and step.index == plan.decision.after
            with recorder.scale(step):
                recorder.totals.append((step, passes.run(step, request.noise)))
                if decides:
                    plan = self._decide(step)
            if request.on_scale_end is not None:
                request.on_scale_end(step, passes.state)
            if decides:
                steps = _behind(plan, step.index)
                passes = self._branch(plan, request, has_room)
                recorder.selections = passes.method_state.selections
        recorder.plan = plan
        # The next replay, perhaps of another thread, overwrites everything in the pool.
        recorder.selections = map_tensors(dict(recorder.selections), Tensor.clone)
        ran = [(step, total) for step, total in recorder.totals if total is not None]
        if ran:
            totals = torch.stack([total for _, total in ran]).unbind()
            recorder.totals = [(step, total) for (step, _), total in zip(ran, totals, strict=True)]
        return _with_own_tensors(passes.state)

    def _decide(self, step: Step) -> Plan:
        """The plan that the method chooses behind a pass, once it has read from the device what it decides by."""
        method = self._own.method
        assert self._result is not None
        with blaming(method):
            return decided_plan(self.plan, self._result, method, step, self.first.method_state)

    def _branch(self, plan: Plan, request: Request, has_room: Callable[[int], bool]) -> Passes:
        """The passes of what was decided, captured if it was decided before."""
        choice = str(plan.choice)
        found = self.branches.get(choice)
        if isinstance(found, NoiseTape):
            found = self._captured_if_room(plan, found, has_room)
        elif found is None:
            self.branches[choice] = tape = NoiseTape(request.noise)
            request.recorder.engine = f"graphs up to the decision, then eager: first {choice!r} of its kind"
            return Passes(self._own, *self._forked(), tape)
        self.branches[choice] = found
        if isinstance(found, CapturedPasses):
            return found
        why = FULL if isinstance(found, NoiseTape) else found
        request.recorder.engine = f"graphs up to the decision, then eager: {why}"
        return Passes(self._own, *self._forked(), request.noise)

    def _captured_if_room(
        self, plan: Plan, tape: NoiseTape, has_room: Callable[[int], bool]
    ) -> CapturedPasses | NoiseTape | str:
        """The graphs of what follows; or its tape, if there is no room for them; or why they cannot be captured.

        How much they hold is known only once they are captured; the tape keeps it.
        """
        if not has_room(tape.nbytes):
            return tape
        before = self.nbytes
        try:
            captured = self._captured(plan, tape)
        except RuntimeError as error:
            return not_captured(error, self._own.model.device)
        tape.nbytes, self.nbytes = self.nbytes - before, before
        if not has_room(tape.nbytes):
            return tape.free()
        self.nbytes += tape.nbytes
        return captured

    def _captured(self, plan: Plan, tape: NoiseTape) -> CapturedPasses:
        """The graphs of what follows the decision in a plan.

        They share the pool of the others. That is safe because a generation replays one alternative, and always behind
        the same passes.
        """
        passes = CapturedPasses(self._own, *self._forked(), tape)
        with self._capturing():
            tape.allocate(self._own.model.device)
            for step in _behind(plan, max(self.first.totals)):
                passes.capture(step, self._capture)
        return passes

    def _forked(self) -> tuple[Any, MethodState]:
        """The states of model and method behind the decision, for one alternative to go on from."""
        model = self._own.model
        states: tuple[Any, MethodState] = forked(
            (self.first.state, self.first.method_state), (model, *model.parameters(), self.first.tape)
        )
        return states


def _behind(plan: Plan, index: int) -> list[Step]:
    return [step for step in plan.steps if step.index > index]


def not_captured(error: RuntimeError, device: torch.device) -> str:
    """Why something is not captured: whatever the driver refuses; the image is generated all the same."""
    torch.cuda.synchronize(device)
    return f"not captured ({' '.join(str(error).split())[:200]})"


def _with_own_tensors(state: Any) -> Any:
    """The state of a generation, its latent and other tensors copied; the caches stay where they are."""
    own = copy(state)
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            setattr(own, name, value.clone())
    return own
