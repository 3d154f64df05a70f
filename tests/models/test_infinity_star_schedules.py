"""The published schedules of InfinityStar."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepvar.core.tokens import Grid
from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity_star.config import CONFIGS, InfinityStarConfig
from stepvar.models.infinity_star.schedules import RATIOS, code_passes, latents_of, schedule_for
from tests.helpers import TINY_STAR


@pytest.mark.parametrize(
    ("variant", "latents", "passes", "tokens"),
    [("480p", 21, 81, 161397), ("480p", 41, 120, 311097), ("720p", 21, 85, 244197)],
)
def test_released_settings(variant: str, latents: int, passes: int, tokens: int) -> None:
    schedule = schedule_for(CONFIGS[variant], 0.571, latents)
    assert (len(schedule), schedule.size, schedule.ratio) == (passes, tokens, 0.562)
    h, w = (schedule[-1].h, schedule[-1].w)
    assert (16 * h, 16 * w) == ((480, 848) if variant == "480p" else (720, 1280))
    assert schedule.clip_slices[:2] == (slice(0, 1), slice(1, 21))


def test_fifteen_shapes_and_their_mirror_images() -> None:
    assert sorted(RATIOS) == [
        0.336, 0.4, 0.494, 0.562, 0.671, 0.753, 0.861, 1.0, 1.16, 1.326, 1.489, 1.777, 2.023, 2.5, 2.971
    ]  # fmt: skip
    assert RATIOS[0.4][0] == (1, 2) and RATIOS[2.5][0] == (2, 1)  # not every pyramid begins with one cell
    assert RATIOS[0.562][:6] == ((1, 1), (2, 3), (2, 4), (3, 5), (4, 7), (4, 8))
    assert RATIOS[1.16] == tuple((w, h) for h, w in RATIOS[0.861])


def test_repetitions_and_ranks() -> None:
    schedule = schedule_for(CONFIGS["720p"], 0.5625, 21)
    video = [index for index in range(len(schedule)) if schedule.clip(index) == 1]
    times = [sum(schedule.scale(index) == scale for index in video) for scale in range(15)]
    assert times == [3] * 12 + [2, 1, 1]
    assert [schedule.scales_from_end(index) for index in video[-5:]] == [4, 3, 3, 2, 1]
    bits = [count for _, count in code_passes(CONFIGS["720p"], schedule)[1]]
    assert bits == [16] * 36 + [64] * 4


def test_seconds() -> None:
    config = CONFIGS["480p"]
    assert [latents_of(config, seconds) for seconds in (0, 1, 2, 5, 10)] == [1, 5, 9, 21, 41]
    assert latents_of(TINY_STAR, 3) == 4
    for seconds in (6, 0.5, 7.5, -1):
        with pytest.raises(UsageError, match=rf"seconds={seconds:g}: this model .* 1, 2, 3, 4, 5, 10 seconds"):
            latents_of(config, seconds)
    with pytest.raises(UsageError, match=r"seconds=10: this model .* 1, 2, 3, 4, 5 seconds, or 0 for a still"):
        schedule_for(CONFIGS["720p"], 1.0, 41)
    assert schedule_for(config, 1.0, 9)[-1] == Grid(8, 40, 40)  # two seconds: a clip of 8 latent frames


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"resolution '1M': choose one of 0.06M, 0.25M, 0.40M, 0.90M"):
        schedule_for(CONFIGS["480p"], 1.0, 1, "1M")
    with pytest.raises(UsageError, match=r"has 15 scales, and this model knows 14; choose 0.40M or less"):
        schedule_for(CONFIGS["480p"], 1.0, 1, "0.90M")
    with pytest.raises(UsageError, match="must be a positive number"):
        schedule_for(CONFIGS["480p"], -1.0, 1)
    assert len(schedule_for(CONFIGS["720p"], 1.0, 1, "0.06M")) == 33


def test_small_models_bring_their_own_shapes() -> None:
    schedule = schedule_for(TINY_STAR, 0.6, 7)
    assert schedule[-1] == Grid(3, 4, 6) and schedule.scale_counts == (3, 3, 3)
    assert schedule_for(TINY_STAR, 1.2, 2)[-1] == Grid(1, 5, 5)
    with pytest.raises(UsageError, match=r"resolution '0.06M': choose one of tiny"):
        schedule_for(TINY_STAR, 1.0, 1, "0.06M")


def test_configurations_are_checked_and_written() -> None:
    for config in (TINY_STAR, CONFIGS["720p"]):
        assert InfinityStarConfig.from_dict(config.to_dict()) == config
    for wrong in ({"kv_heads": 3}, {"heads": 16}, {"block_chunks": 2}, {"latents": (6,)}, {"video_repetitions": (0,)}):
        with pytest.raises(CheckpointError):
            replace(TINY_STAR, **wrong)
