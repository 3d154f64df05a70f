"""No method waits for the device, or makes a shape of data: on the meta device there are no numbers to wait for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepvar.core.plan import Plan, Step
from stepvar.core.stack import AttentionInputs, PassResult, Projection, Sublayer, SublayerRef
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.cost.dry_run import MetaNoise
from stepvar.methods import METHODS, Method, MethodState, make_method
from stepvar.methods.restoration import RESTORATIONS
from tests.helpers import CLIPS, WIDE
from tests.methods.helpers import DEPTH, plan_of
from tests.methods.test_matrix import IMAGES_ONLY, SMALLER

CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, **SMALLER.get(name, {})} for name in METHODS if make_method(name).static},
    **{f"stepvar-{restore}": {"method": "stepvar", "restore": restore, "scope": "block"} for restore in RESTORATIONS},
    "sublayer": {"method": "stepvar", "restore": "cached", "scope": "sublayer", "propagate": "update"},
}


class Blocks:
    """Blocks of two sub-layers that add nothing, run as a method says."""

    depth = DEPTH

    def enter(self, tokens: TokenMap, first: int = 0) -> TokenMap:
        return tokens

    def __init__(self, method: Method, plan: Plan, step: Step, state: MethodState) -> None:
        self.method, self.plan, self.step, self.state = method, plan, step, state

    def entered(self, tokens: TokenMap, layer: int = 0) -> TokenMap:
        return tokens

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for layer in range(first, DEPTH if last is None else last):
            for name in ("self", "ffn"):
                run: Sublayer = lambda tokens: torch.zeros_like(tokens.features)  # noqa: E731
                update = self.method.run_sublayer(run, tokens, SublayerRef(layer, name, DEPTH), self.step, self.state)
                tokens = tokens.with_features(tokens.features + update)
            self.attend(tokens, layer)
        return tokens

    def attend(self, tokens: TokenMap, layer: int) -> None:
        """The self-attention of a layer, and what stays of its keys, as a method says."""
        rows, own, _ = tokens.features.shape
        keys = self.plan.attended(self.step)[layer]
        q, k = (torch.empty(rows, 2, count, 4, device="meta") for count in (own, keys))
        inputs, ref = AttentionInputs(q, k, k, Projection(q)), SublayerRef(layer, "self", DEPTH)
        attended = self.method.run_attention(lambda inputs: inputs.queries, inputs, ref, self.step, self.state)
        assert attended.is_meta and attended.shape == q.shape
        if self.step.dropped and self.step.dropped[layer]:
            count = keys - self.step.dropped[layer]
            assert self.method.select_cached(inputs, count, ref, self.step, self.state).shape == (rows, 2, count)


@pytest.mark.parametrize("schedule", [WIDE, CLIPS], ids=["image", "video"])
@pytest.mark.parametrize("case", CASES)
def test_everything_runs_without_numbers(case: str, schedule: ScaleSchedule) -> None:
    if case in IMAGES_ONLY and schedule.kv_scope != "all":
        pytest.skip("not for clips")
    settings = dict(CASES[case])
    method = make_method(settings.pop("method"), **settings)
    plan = plan_of(method, schedule, samples=2)
    state = method.start(plan)
    state.use(MetaNoise())
    grid, frames = schedule.grids[-1], schedule.clip_slices[-1].stop
    latent = torch.empty(2, 4, *([frames] if frames > 1 else []), grid.h, grid.w, device="meta")
    for step in plan.steps:
        tokens = TokenMap.dense(torch.empty(step.rows, step.grid.size, 8, device="meta"), step.grid)
        dense = method.run_stack(Blocks(method, plan, step, state), tokens, step, state)
        assert dense.features.is_meta and dense.features.shape == tokens.features.shape
        logits = torch.empty(step.samples, step.grid.size, 6, 2, device="meta")
        method.after_pass(PassResult(logits, logits[..., 0], latent, lambda values: values[:, :3]), step, state)
