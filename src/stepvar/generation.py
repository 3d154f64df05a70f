"""The loop over the passes of a generation: scale by scale, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor

from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.sampling import sample_pass
from stepvar.core.stack import Sublayer, SublayerRef, run_dense
from stepvar.core.tokens import TokenMap
from stepvar.methods.base import Method, MethodState
from stepvar.methods.contract import blaming, checked_map, checked_state, checked_update
from stepvar.models.model import NextScaleModel
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
    """
    recorder = recorder or Recorder()
    with ExitStack() as stack:
        with recorder.stage("prepare"):
            stack.enter_context(model.on_device("loop"))
            state = model.start(condition, plan)
            with blaming(method):
                method_state = checked_state(method.start(plan), method)
        recorder.selections = method_state.selections
        for step in plan.steps:
            with recorder.scale(step), blaming(method):
                total = run_pass(model, state, method, method_state, step, noise, (forced or {}).get(step.index))
            recorder.totals.append((step, total))
            if on_scale_end is not None:
                on_scale_end(step, state)
    model.finish(state)
    return state


def run_pass(
    model: NextScaleModel[Condition, State],
    state: State,
    method: Method,
    method_state: MethodState,
    step: Step,
    noise: Noise,
    forced: Tensor | None = None,
) -> Tensor | None:
    """One pass: the tokens of a scale through the blocks, from logits to codes, and their sum into the image.

    Returns:
        The sum of all features behind the blocks, which is not finite if one of them is not; None if none ran.
    """

    def hook(sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        return checked_update(method.run_sublayer(sublayer, tokens, ref, step, method_state), tokens, method, step)

    total = None
    if step.computed:
        entered = model.embed(state, step)
        blocks = model.blocks(state, step, hook if method.acts_on_sublayers(step) else run_dense)
        tokens = checked_map(method.run_stack(blocks, entered, step, method_state), entered, method, step)
        total = tokens.features.sum(dtype=torch.float32)
    if forced is not None:
        model.accumulate(state, forced, step)
        return total
    indices, weights = sample_pass(model.predict(state, tokens, step), noise, step)
    model.accumulate(state, indices, step, weights)
    model.refine(state, tokens, indices, step, noise)
    return total
