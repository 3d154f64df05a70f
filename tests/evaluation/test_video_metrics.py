"""Flicker, fidelity and motion of videos, on motions that are known."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from stepvar.evaluation.metrics.fidelity import fidelity, psnr, ssim
from stepvar.evaluation.metrics.video import directions, flicker, motion
from stepvar.evaluation.scenes.clips.grammar import MOTIONS, sample_clip
from stepvar.evaluation.scenes.clips.render import render_clips


def moving(right: float, down: float, frames: int = 9, side: int = 48, radius: float = 7) -> Tensor:
    """A soft bright disc that goes from the middle of its way over a textured background: (1, 3, F, side, side)."""
    texture = 0.3 + 0.2 * torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(*2 * [torch.arange(side, dtype=torch.float32)], indexing="ij")
    pictures = []
    for index in range(frames):
        moment = index - (frames - 1) / 2
        distance = ((x - side / 2 - right * moment) ** 2 + (y - side / 2 - down * moment) ** 2).sqrt()
        cover = (radius + 0.5 - distance).clamp(0, 1)
        pictures.append(torch.lerp(texture[:, 0], torch.tensor([0.9, 0.8, 0.1])[:, None, None], cover))
    return torch.stack(pictures, dim=1).unsqueeze(0)


@pytest.mark.parametrize("way", [(2.0, 0.0), (-2.0, 0.0), (0.0, 1.5), (0.0, -3.0), (0.5, 0.0), (1.0, -1.5)], ids=str)
def test_motion_is_the_way_per_frame(way: tuple[float, float]) -> None:
    found = motion(moving(*way))[0]
    assert (found - torch.tensor(way)).abs().max() < 0.1 * max(map(abs, way)) + 0.02


def test_motion_is_seen_through_flicker() -> None:
    noisy = moving(0, 2.0) + 0.03 * torch.randn(1, 3, 9, 48, 48, generator=torch.Generator().manual_seed(1))
    assert (motion(noisy)[0] - torch.tensor([0.0, 2.0])).abs().max() < 0.3
    assert directions(noisy) == ["down"]


def test_nothing_moves_in_a_still_video() -> None:
    still = moving(0, 0)
    assert motion(still).eq(0).all() and directions(still) == [None]
    assert directions(still + 0.01 * torch.randn(still.shape, generator=torch.Generator().manual_seed(1))) == [None]


def test_videos_of_a_batch_are_judged_alone() -> None:
    batch = torch.cat([moving(2, 0), moving(0, -2), moving(0, 0), moving(-1, 0.5)])
    assert directions(batch) == ["right", "up", None, "left"]
    torch.testing.assert_close(motion(batch)[1:2], motion(moving(0, -2)))


def test_directions_of_rendered_clips() -> None:
    """All motions of the embedded domain, at both speeds: what grows or shrinks goes nowhere."""
    rng = random.Random(0)
    clips = [sample_clip(rng) for _ in range(42)]
    assert {clip.motion for clip in clips} == set(MOTIONS)
    videos = (render_clips(clips, range(len(clips)), 9, 64, 64) + 1) / 2
    expected = [clip.motion if clip.motion in ("left", "right", "up", "down") else None for clip in clips]
    assert directions(videos) == expected


def test_a_short_way_is_no_motion() -> None:
    video = moving(0.25, 0)  # 2 of 48 pixels in all
    assert directions(video) == [None] and directions(video, shortest=0.02) == ["right"]


def test_flicker_is_the_change_of_what_stands_still() -> None:
    dense = moving(2, 0)
    levels = torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0]).view(1, 1, -1, 1, 1) / 255
    found = flicker(dense + levels, dense)
    assert found.own.item() == pytest.approx(2 + found.dense.item(), abs=0.1)
    assert found.dense.item() < 0.2 and 0.6 < found.still.item() < 0.95
    assert flicker(dense, dense).excess.item() == 0


def test_flicker_does_not_count_what_moves_in_the_dense_video() -> None:
    dense = moving(0, 0)
    busy = torch.rand(2, 1, 3, 9, 12, 48, generator=torch.Generator().manual_seed(0))
    dense[..., 10:22, :], other = busy[0], dense.clone()
    other[..., 10:22, :] = busy[1]
    found = flicker(other, dense)
    assert found.excess.item() == 0 and found.still.item() == pytest.approx(1 - 16 / 48, abs=0.02)


def test_flicker_where_nothing_stands_still_is_unknown() -> None:
    noise = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = flicker(noise, noise)
    assert found.own.isnan().all() and found.still.eq(0).all()


def test_fidelity_of_frames_is_that_of_images() -> None:
    dense = torch.cat([moving(2, 0), moving(0, 1)])
    rough = (dense + 0.02 * torch.arange(9).view(1, 1, 9, 1, 1)).clamp(0, 1)
    rows = fidelity(rough.transpose(1, 2), dense.transpose(1, 2))
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        wanted = metric(rough[:, :, 5], dense[:, :, 5])
        assert [row["frames"][name][5] for row in rows] == pytest.approx(wanted.tolist(), abs=1e-4)
    found = [row["frames"]["psnr"] for row in rows]
    assert [values[0] for values in found] == [99.0, 99.0] and found[0][1:] == sorted(found[0][1:], reverse=True)


def test_too_few_frames_are_refused() -> None:
    one = moving(0, 0, frames=1)
    with pytest.raises(ValueError, match="2 frames or more"):
        flicker(one, one)
    with pytest.raises(ValueError, match="3 or more"):
        motion(moving(0, 0, frames=2))
