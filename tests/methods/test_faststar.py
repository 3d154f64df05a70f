"""FastSTAR's rule: which tokens, at which passes, and what becomes of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Step
from stepvar.core.stack import PassResult, RunBlocks
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.methods import FastSTAR, Method, make_method
from stepvar.methods.faststar import FastSTARState
from stepvar.models.infinity_star.model import VideoCondition
from tests.helpers import (
    CLIPS,
    SQUARE,
    Generation,
    equal_everywhere,
    generate_hart,
    generate_star,
    make_context,
    make_hart,
    make_settings,
    make_star,
    make_text,
)
from tests.methods.helpers import plan_of

FRAMES = {0: range(1), 1: range(1, 4), 2: range(4, 7)}
"""Latent frames of the clips of CLIPS."""


@dataclass
class Seen:
    """What was seen of a pass."""

    kept: Tensor | None
    features: Tensor
    latent: Tensor = field(init=False)


@dataclass(frozen=True)
class Watched(FastSTAR):
    """Notes what was kept at each pass, what left the blocks, and the latent behind it."""

    seen: dict[int, Seen] = field(default_factory=dict)

    def run_stack(self, run: RunBlocks, tokens: TokenMap, step: Step, state: FastSTARState) -> TokenMap:
        tokens = super().run_stack(run, tokens, step, state)
        self.seen[step.index] = Seen(state.kept, tokens.features)
        return tokens

    def after_pass(self, result: PassResult, step: Step, state: FastSTARState) -> None:
        super().after_pass(result, step, state)
        self.seen[step.index].latent = result.latent.clone()


def generated(method: Method, **settings: Any) -> Generation[Any]:
    return generate_star(make_star(), make_settings(CLIPS, **settings), method, make_text((5, 3)))


def slow_scores(before: Tensor, after: Tensor, step: Step) -> Tensor:
    """The score of each cell of a clip (B, t, H, W), one at a time, from latents (B, d, T, H, W)."""
    frames = FRAMES[step.clip]
    scores = torch.zeros(len(after), len(frames), *after.shape[3:])
    for batch in range(len(after)):
        for place, frame in enumerate(frames):
            for y in range(after.shape[3]):
                for x in range(after.shape[4]):
                    here = after[batch, :, frame, y, x]
                    changed = distance(before[batch, :, frame, y, x], here)
                    moved = distance(after[batch, :, frame - 1, y, x], here) if frame else 0.0
                    scores[batch, place, y, x] = math.hypot(changed, moved)
    return scores


def distance(one: Tensor, other: Tensor) -> float:
    norms = float(one.norm()) * float(other.norm())
    return 1 - float(one @ other) / norms if norms else 1.0


@pytest.mark.parametrize("selection", ["clip", "frame"])
def test_what_changed_and_what_moved_is_kept(selection: Any) -> None:
    method = Watched(prune=(0.6,), selection=selection)
    plan = generated(method).plan
    pruned = [step for step in plan.steps if step.scales_from_end == 1]
    assert len(pruned) == 3
    for step in pruned:
        before, after = (method.seen[step.index - back].latent for back in (2, 1))
        scores = slow_scores(before, after, step).flatten(2)  # the last scale has the size of the latent
        scores = scores if selection == "frame" else scores.flatten(1).unsqueeze(1)
        count = scores.shape[2] - int(scores.shape[2] * 0.6)
        for row, kept in zip(scores, method.seen[step.index].kept, strict=True):  # type: ignore[arg-type]
            best = [set((part.topk(count).indices + place * len(part)).tolist()) for place, part in enumerate(row)]
            assert set(kept.tolist()) == set.union(*best)


def test_what_is_pruned_keeps_the_latent_and_leaves_the_blocks_as_zeros() -> None:
    method = Watched(prune=(0.6,))
    plan = generated(method).plan
    for step in (step for step in plan.steps if step.scales_from_end == 1):
        seen, before = method.seen[step.index], method.seen[step.index - 1].latent
        clip = CLIPS.clip_slices[step.clip]
        changed = (seen.latent != before)[:, :, clip].any(dim=1).flatten(1)
        assert seen.kept is not None
        kept = torch.zeros_like(changed).scatter(1, seen.kept, True)
        assert torch.equal(changed, kept)
        computed = (seen.features != 0).any(dim=-1)
        assert torch.equal(computed, kept.repeat(2, 1)) and step.tokens == (len(seen.kept[0]),) * 3


def test_the_last_of_several_repetitions_runs_in_full() -> None:
    method = FastSTAR(prune=(0.3, 0.5))
    steps = plan_of(method, CLIPS).steps
    kept = [step.tokens[0] / step.grid.size for step in steps]
    # Of the image the scale before the last runs twice, of the clips every scale but the first once.
    assert [round(share, 2) for share in kept[:5]] == [1, 1, 0.83, 1, 0.5]
    assert [round(share, 2) for share in kept[5:9]] == [1, 1, 0.72, 0.5]


def test_the_masked_update_computes_everything_and_adds_the_same_places() -> None:
    gathered, masked = (Watched(prune=(0.6,), gather=gather) for gather in (True, False))
    plans = [generated(method).plan for method in (gathered, masked)]
    assert plans[1].steps[4].tokens == (24,) * 3 and plans[0].steps[4].tokens == (10,) * 3
    one, other = (method.seen[4] for method in (gathered, masked))
    assert one.kept is not None and other.kept is not None and torch.equal(one.kept, other.kept)
    assert torch.equal(one.latent != gathered.seen[3].latent, other.latent != masked.seen[3].latent)
    assert not torch.equal(one.features, other.features)
    assert make_method("faststar:masked-update") == FastSTAR(gather=False)


def test_the_residual_of_a_diffusion_head_is_left_out_too() -> None:
    model, method = make_hart(), Watched(prune=(0.7,))
    generate_hart(model, make_settings(SQUARE), method, make_context((3, 5)))
    last, before = method.seen[4], method.seen[3].latent
    assert last.kept is not None
    changed = (last.latent != before).any(dim=1).flatten(1)
    assert torch.equal(changed, torch.zeros_like(changed).scatter(1, last.kept, True))


def test_of_an_image_the_last_update_alone_decides() -> None:
    method = Watched(prune=(0.5,))
    model = make_hart()
    generate_hart(model, make_settings(SQUARE), method, make_context((3,)))
    before, after = (method.seen[index].latent[0].flatten(1) for index in (2, 3))
    scores = torch.tensor([distance(before[:, cell], after[:, cell]) for cell in range(64)])
    assert method.seen[4].kept is not None
    assert method.seen[4].kept[0].tolist() == sorted(scores.topk(32).indices.tolist())


def test_no_share_is_dense() -> None:
    dense, same = generated(Method()), generated(FastSTAR(prune=(0.0, 0.0, 0.0)))
    assert equal_everywhere(dense.passes("logits"), same.passes("logits"))


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(UsageError, match=r"prune=\(\): give one share per pruned scale"):
        FastSTAR(prune=())
    with pytest.raises(UsageError, match="prune: needs 5 scales, one of them unpruned; the schedule has 3"):
        plan_of(FastSTAR(), CLIPS)
    with pytest.raises(UsageError, match="reaches back 1 scales, of which the last 2 are not run"):
        plan_of(make_method("faststar+skip-last", prune=(0.5,), count=2), SQUARE)


def test_state_is_of_one_generation() -> None:
    model, plan = make_star(), FastSTAR(prune=(0.5,)).plan(make_settings(CLIPS), make_star().info, 1)
    method, condition = FastSTAR(prune=(0.5,)), VideoCondition(make_text((5,)))
    latents = [generate(model, condition, plan, method, SeededNoise((1,))).latent for _ in range(2)]
    assert torch.equal(*latents)


def test_published_shares_of_the_last_four_scales() -> None:
    assert [step.tokens[0] for step in plan_of(FastSTAR(), SQUARE).steps] == [1, 4 - 0, 16 - 4, 36 - 14, 64 - 44]
