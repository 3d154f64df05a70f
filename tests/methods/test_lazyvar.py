"""Scales that run together, and LazyVAR, which runs each of them where it is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.stack import PassResult
from stepvar.core.tokens import TokenMap
from stepvar.cost.dry_run import count_flops
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import Compose, DropGuidance, LazyVAR, Method, SkipLast
from stepvar.methods.lazyvar import LazyVARState
from tests.helpers import equal_everywhere, make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.test_matrix import Recording

IMAGES = [row for row in ROWS if row.schedule.kv_scope == "all"]


@dataclass(frozen=True)
class Together(Method):
    """Runs all tokens of the last scales in one pass."""

    last: int = 2

    def edit(self, settings: Settings) -> Settings:
        return replace(settings, groups=(settings.passes[-self.last :],))


class OneStart(Recording):
    """Passes that run one after the other, but all from the image in front of the last few."""

    def __init__(self, model: Any, last: int) -> None:
        super().__init__(model)
        self.last, self.latent = last, torch.empty(0)

    def embed(self, state: Any, step: Step) -> TokenMap:
        if step.scales_from_end > self.last:
            return self.model.embed(state, step)
        if step.scales_from_end == self.last:
            self.latent = state.latent.clone()
        tokens: TokenMap = self.model.embed(replace(state, latent=self.latent), step)
        return tokens


def run(row: FamilyRow, method: Method, model: Any = None, count: int = 2) -> tuple[list[Tensor], Tensor, Any]:
    model = model or Recording(row.model())
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, count)
    state: Any = generate(model, row.condition(range(count)), plan, method, SeededNoise(range(count)))
    return model.logits, state.latent, plan


@pytest.mark.parametrize("row", IMAGES, ids=str)
@pytest.mark.parametrize("last", [2, 3])
def test_scales_that_run_together_see_what_they_would_see_one_by_one(row: FamilyRow, last: int) -> None:
    logits, latent, plan = run(row, Together(last))
    wanted, other, _ = run(row, Method(), OneStart(row.model(), last))
    for one, two in zip(logits, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    torch.testing.assert_close(latent, other, atol=1e-4, rtol=0)
    assert [len(step.together) for step in plan.steps][-last] == last
    assert not equal_everywhere(logits, run(row, Method())[0])


@pytest.mark.parametrize("row", IMAGES, ids=str)
def test_in_low_precision_blocks_may_be_fused(row: FamilyRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused form of the blocks on its plain operations, beside the one with a hook around the sub-layers."""
    from stepvar.models.blocks import BlockRun

    whole = run(row, Together())[0]
    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    for one, two in zip(run(row, Together())[0], whole, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=0)


def test_each_place_runs_once_and_what_changes_most_runs_finest() -> None:
    row, method = ROWS[0], LazyVAR(keep=(0.25, 0.125))
    plan = method.plan(make_settings(row.schedule), row.model().info, 1)
    steps = plan.steps[-2:]
    change = torch.arange(64.0).flip(0).view(1, 1, 8, 8)  # falls from the first cell to the last
    state = LazyVARState(change=change)
    coarse, fine = (method.choose(step, steps, state) for step in steps)
    assert fine.tolist() == [list(range(8))]
    ratio = steps[0].grid.size / 64
    start = round(0.125 * steps[0].grid.size)
    assert coarse.tolist() == [list(range(start, start + round(16 * ratio)))]


def test_the_change_is_that_of_the_two_scales_in_front() -> None:
    row, method = ROWS[0], LazyVAR(keep=(0.25, 0.125))
    plan = method.plan(make_settings(row.schedule), row.model().info, 1)
    state, images = LazyVARState(), [torch.randn(1, 4, 8, 8) for _ in plan.steps]
    for step in plan.steps:
        method.after_pass(PassResult(None, torch.empty(0), images[step.index], lambda x: x), step, state)
    assert state.change is not None
    before, after = images[len(plan.steps) - 4], images[len(plan.steps) - 3]
    wanted = 1 - (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
    torch.testing.assert_close(state.change[:, 0], wanted)


def test_elsewhere_the_last_scale_adds_nothing() -> None:
    row = ROWS[0]
    images: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}

    @dataclass(frozen=True)
    class Watched(LazyVAR):
        def after_pass(self, result: PassResult, step: Step, state: LazyVARState) -> None:
            super().after_pass(result, step, state)
            images[step.index] = result.latent.clone()
            kept.update({index: own[0] for index, own in state.selections.items()})

    _, _, plan = run(row, Watched(keep=(0.25, 0.125)), count=1)
    last = plan.steps[-1].index
    changed = (images[last] != images[last - 1]).any(dim=1).flatten()
    assert changed.nonzero().flatten().tolist() == kept[last][0].tolist()


def test_it_computes_what_it_keeps() -> None:
    row = ROWS[0]
    model, settings = row.model(), make_settings(row.schedule, 3.0)

    def flops(method: Method) -> int:
        return sum(count_flops(model, row.condition(range(1)), method.plan(settings, model.info, 1), method).values())

    few, more = flops(LazyVAR(keep=(0.2, 0.1))), flops(LazyVAR(keep=(0.5, 0.5)))
    assert few < more < flops(Method())
    assert few < flops(SkipLast(1)) * 1.2


def test_guidance_ends_at_all_scales_of_a_group_or_at_none() -> None:
    row, method = ROWS[0], LazyVAR(keep=(0.25, 0.125))
    assert run(row, Compose(method, DropGuidance(last=2)))[2].steps[-1].branches == 1
    with pytest.raises(UsageError, match="run together, so guidance ends at all of them or at none"):
        run(row, Compose(method, DropGuidance(last=1)))


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ((0.5,), "at least two scales"),
        ((0.8, 0.3), "the sum is 1.1; no place runs twice"),
        ((0.2, 0.1, 0.1, 0.1), "give at most 3"),
    ],
)
def test_shares_that_cannot_be(keep: tuple[float, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(ROWS[0], LazyVAR(keep=keep))


def test_cells_that_no_longer_change_may_be_zero() -> None:
    """The cosine of what is zero everywhere is none; nothing of it is NaN."""
    state = LazyVARState(change=1 - F.cosine_similarity(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)).unsqueeze(1))
    row, method = ROWS[0], LazyVAR(keep=(0.25, 0.125))
    plan = method.plan(make_settings(row.schedule), row.model().info, 1)
    assert method.choose(plan.steps[-1], plan.steps[-2:], state).shape == (1, 8)
