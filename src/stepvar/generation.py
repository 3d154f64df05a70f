"""The one loop over scales, their repetitions and clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from stepvar.core.plan import Plan, Step
from stepvar.core.report import Recorder
from stepvar.core.sampling import Noise, gumbel_sample, sample
from stepvar.methods.base import Method
from stepvar.models.base import NextScaleModel, RunState

Condition = TypeVar("Condition")
State = TypeVar("State", bound=RunState)


@torch.inference_mode()
def generate(
    model: NextScaleModel[Condition, State],
    condition: Condition,
    samples: int,
    plan: Plan,
    method: Method,
    noise: Noise,
    recorder: Recorder | None = None,
    on_scale_end: Callable[[Step, State], None] | None = None,
) -> State:
    """Draws ``samples`` pictures scale by scale; ``model.decode(state)`` gives their pixels.

    Args:
        condition: what the model draws, in the family's own form (text features, classes).
        plan: the settings of every scale; the method may edit them. Symbols that it gives are taken, not drawn.
        noise: where the draws of every scale come from.
        recorder: measures each scale.
        on_scale_end: called behind each scale with the state, which it must not change.
    """
    plan = method.prepare(plan, model.info)
    recorder = recorder or Recorder()
    with recorder.stage("prepare"):
        state = model.start(condition, plan, method)
    for step in plan.steps(samples):
        with recorder.scale(step, state):
            symbols, weights = step.given, None
            if step.computed:
                tokens = model.embed(state, step)
                tokens = method.run_stack(model.blocks(state, step, method), tokens, step)
            if symbols is None:
                logits = model.predict(state, tokens, step)
                if plan.smooth:
                    smooth = plan.smooth[step.index]
                    symbols, weights = gumbel_sample(logits, noise, step.index, smooth, step.top_k, plan.top_p)
                else:
                    symbols = sample(logits, noise, step.index, step.top_k, plan.top_p)
            model.accumulate(state, symbols, step, weights)
            if step.given is None:
                model.refine(state, tokens, symbols, step, noise)
        if on_scale_end is not None:
            on_scale_end(step, state)
    return state
