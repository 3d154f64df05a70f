"""Pruning on videos: selections by frame, distances in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.core.plan import Step
from stepvar.core.tokens import TokenMap
from stepvar.errors import UsageError
from stepvar.methods import PruningState, StepVAR, make_method
from stepvar.methods.restoration import nearest_kept
from stepvar.models.infinity_star import InfinityStar
from tests.helpers import CLIPS, SQUARE, equal_everywhere, generate_star, make_settings, make_star, make_text
from tests.methods.helpers import plan_of


@pytest.fixture(scope="module")
def star() -> InfinityStar:
    return make_star()


def last_step() -> Step:
    return plan_of(StepVAR(), CLIPS).steps[-1]


def test_every_frame_keeps_as_many(star: InfinityStar) -> None:
    method = StepVAR(keep=0.3, last=1, selection="frame", context_clips="pruned")
    generated = generate_star(star, make_settings(CLIPS), method, make_text((5, 3)))
    (kept,) = generated.kept(generated.steps[-1])
    assert method.count_at(generated.steps[-1]) == 3 * round(0.3 * 24) == kept.shape[1]
    for row in kept:
        assert (row // 24).bincount(minlength=3).tolist() == [7, 7, 7]
        assert row.tolist() == sorted(set(row.tolist()))
    assert generated.state.cache.lengths == [5 + 21] * 3


def test_the_best_of_each_frame_are_kept() -> None:
    step, method = last_step(), StepVAR(keep=0.25, last=1, selection="frame")
    features = torch.randn(1, 72, 8, generator=torch.Generator().manual_seed(0))
    features[:, 24:48] *= 10  # a frame that would take all
    tokens = TokenMap.dense(features, step.grid)
    scores = method.score(tokens, step, PruningState()).view(3, 24)
    expected = [frame * 24 + index for frame in range(3) for index in scores[frame].topk(6).indices.sort().values]
    alone = replace(step, branches=1)
    assert method.select(tokens, 18, alone, PruningState()).kept[0].tolist() == expected
    clip = replace(method, selection="clip").select(tokens, 18, alone, PruningState()).kept[0]
    assert ((clip >= 24) & (clip < 48)).sum() > 12


def test_distances_in_time_follow_the_weight() -> None:
    step = last_step()
    tokens = TokenMap.dense(torch.randn(1, 72, 8, generator=torch.Generator().manual_seed(1)), step.grid)
    found = {}
    for weight in (0.5, 1.0, 4.0):
        method = StepVAR(keep=0.1, temporal_weight=weight)
        selection = method.select(tokens, 7, replace(step, branches=1), PruningState())
        assert torch.equal(selection.source, nearest_kept(selection.kept, step.grid, weight))
        found[weight] = selection.source
    assert not torch.equal(found[0.5], found[4.0])


def test_what_the_next_clip_sees_is_left_dense(star: InfinityStar) -> None:
    settings = make_settings(CLIPS)
    final = [clip[-1] for clip in settings.clips]
    for context_clips in ("dense", "pruned"):
        generated = generate_star(star, settings, StepVAR(keep=0.5, last=1, context_clips=context_clips))
        assert set(generated.selections) == (set(final) if context_clips == "pruned" else {final[2]})
        assert [generated.steps[index].is_context for index in final] == [True, True, False]
    assert not any(step.is_context for step in plan_of(StepVAR(), SQUARE).steps)
    with pytest.raises(UsageError, match="context_clips='all': must be one of dense, pruned"):
        StepVAR(context_clips="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stepvar", "coverage", "random", "high-pass", "stepvar:taper"])
def test_methods_by_frame_generate(star: InfinityStar, name: str) -> None:
    method = make_method(name, selection="frame", temporal_weight=2.0)
    generated = generate_star(star, make_settings(CLIPS), method)
    assert generated.kept(generated.steps[-1])[0].shape[1] % 3 == 0
    assert torch.isfinite(star.decode(generated.state)).all()


def test_all_tokens_kept_is_dense(star: InfinityStar) -> None:
    dense = generate_star(star, make_settings(CLIPS))
    kept = generate_star(star, make_settings(CLIPS), StepVAR(keep=1.0, selection="frame", temporal_weight=3))
    assert equal_everywhere(dense.passes("logits"), kept.passes("logits"))


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="selection='video': must be one of clip, frame"):
        StepVAR(selection="video")  # type: ignore[arg-type]
    for weight in (-1, 1001, float("nan")):
        with pytest.raises(UsageError, match=r"temporal_weight=.*: must be a number from 0 to 1000"):
            StepVAR(temporal_weight=weight)
