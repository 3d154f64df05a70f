"""The loop over the passes of a generation: scale by scale, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.sampling import Sampler
from stepvar.core.split import whole_plan
from stepvar.core.stack import PassResult
from stepvar.core.tokens import TokenMap
from stepvar.methods.base import Method, MethodState
from stepvar.methods.contract import blaming, checked_map, checked_mask, checked_state, decided_plan, hooks_of
from stepvar.models.base import NextScaleModel
from stepvar.utils.ambient import stated_formats

Condition = TypeVar("Condition")
State = TypeVar("State")


@stated_formats()
@torch.inference_mode()
def generate(
    model: NextScaleModel[Condition, State],
    condition: Condition,
    plan: Plan,
    method: Method,
    noise: Noise,
    forced: Mapping[int, Tensor] | None = None,
    recorder: Recorder | None = None,
    on_scale_end: Callable[[Step, State], None] | None = None,
    sampler: Sampler | None = None,
) -> State:
    """Generates ``plan.samples`` images or videos; ``model.decode(state)`` gives their pixels.

    The keys and values are freed at the end, so that decoding does not run beside them.

    Args:
        condition: what to generate, in the family's own form (text features, classes).
        plan: what to do at every pass, as ``method.plan(...)`` resolved it.
        noise: where the random numbers of every pass come from.
        forced: indices or bits (B, N, ...) of the passes whose codes are given, by pass.
        recorder: measures each pass.
        on_scale_end: called after each pass with the state, which it must not change.
        sampler: from the logits of a pass to its codes, for all passes whose codes are not forced; None: the model's.
    """
    recorder = recorder or Recorder()
    with ExitStack() as stack:
        with recorder.stage("prepare"):
            stack.enter_context(model.on_device("loop"))
            state = model.start(condition, plan)
            with blaming(method):
                method_state = checked_state(method.start(plan), method)
        method_state.use(noise)
        recorder.selections = method_state.selections
        steps = list(plan.steps)
        while steps:
            step = steps.pop(0)
            with recorder.scale(step), blaming(method):
                given = (forced or {}).get(step.index)
                ran = run_pass(model, state, method, method_state, step, noise, given, sampler)
                if plan.decision is not None and step.index == plan.decision.after:
                    assert ran.result is not None
                    plan = decided_plan(plan, ran.result, method, step, method_state)
                    steps = [later for later in plan.steps if later.index > step.index]
            recorder.totals.append((step, ran.total))
            if on_scale_end is not None:
                on_scale_end(step, state)
    recorder.plan = whole_plan(plan.with_tokens(method_state.counts) if method_state.counts else plan)
    model.finish(state)
    return state


class Ran(NamedTuple):
    """A pass that was run.

    Attributes:
        total: the sum of all features behind the blocks, which is not finite if one of them is not; None if none ran.
        result: what it left, where the method looks at that.
    """

    total: Tensor | None
    result: PassResult | None


def run_pass(
    model: NextScaleModel[Condition, State],
    state: State,
    method: Method,
    method_state: MethodState,
    step: Step,
    noise: Noise,
    forced: Tensor | None = None,
    sampler: Sampler | None = None,
) -> Ran:
    """One pass: the tokens of a scale through the blocks, from logits to codes, and their sum into the image."""
    total = logits = None
    if step.computed:
        tokens = run_blocks(model, state, method, method_state, step)
        total = tokens.features.sum(dtype=torch.float32)
    if forced is not None:
        indices = forced
        model.accumulate(state, indices, step)
    else:
        logits = model.predict(state, tokens, step)
        if sampler is None:
            indices, weights = model.sample(state, tokens, logits, step, noise)
        else:
            indices, weights = sampler(logits, noise, step)
        logits = logits if method.reads_results else None
        mask = checked_mask(method.code_mask(step, method_state), indices, method, step)
        model.accumulate(state, indices, step, weights, mask)
        model.refine(state, tokens, indices, step, noise, mask)
    if not method.reads_results:
        return Ran(total, None)
    result = PassResult(logits, indices, model.latent(state), model.decode_latent)
    method.after_pass(result, step, method_state)
    return Ran(total, result)


def run_blocks(
    model: NextScaleModel[Condition, State], state: State, method: Method, method_state: MethodState, step: Step
) -> TokenMap:
    """The dense map behind the blocks; at the first pass of a group those of the others are computed, too."""
    if step.index in method_state.ahead:
        return method_state.ahead.pop(step.index)
    steps = step.together or (step,)
    entered = [model.embed(state, each) for each in steps]
    blocks = model.blocks(state, step, hooks_of(method, step, method_state))
    if not step.together:
        return checked_map(method.run_stack(blocks, entered[0], step, method_state), entered[0], method, step)
    maps = method.run_group(blocks, entered, steps, method_state)
    for each, tokens, before in zip(steps, maps, entered, strict=True):
        method_state.ahead[each.index] = checked_map(tokens, before, method, each, "run_group")
    return method_state.ahead.pop(step.index)
