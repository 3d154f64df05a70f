from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.scenes.clips.grammar import MOTIONS, Clip, sample_clip
from stepvar.evaluation.scenes.clips.render import clip_paths, render_clips
from stepvar.evaluation.scenes.grammar import BACKGROUNDS, SceneObject
from training.video.captions import parse_clip

BLACK = Clip(SceneObject("circle", "black", "plain", "large"), "right", False, "quickly", "snow")


def clips_of(count: int, seed: int = 0) -> list[Clip]:
    rng = random.Random(seed)
    return [sample_clip(rng) for _ in range(count)]


def darkness(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (x, y) and area of what is dark in frames (T, 3, H, W)."""
    dark = (frames.mean(1) < -0.3).float()
    area = dark.sum((1, 2))
    y = (dark.sum(2) * torch.arange(dark.shape[1])).sum(1) / area
    x = (dark.sum(1) * torch.arange(dark.shape[2])).sum(1) / area
    return x, y, area


@pytest.mark.parametrize(("height", "width", "frames"), [(48, 48, 5), (40, 64, 3), (64, 40, 1)])
def test_clips_have_the_size_asked_for_and_stay_in_range(height: int, width: int, frames: int) -> None:
    images = render_clips(clips_of(12), range(12), frames, height, width)
    assert images.shape == (12, 3, frames, height, width)
    assert bool(torch.isfinite(images).all())
    assert images.min() >= -1.0 and images.max() <= 1.0


def test_a_clip_does_not_depend_on_the_batch() -> None:
    clips = clips_of(12)
    together = render_clips(clips, range(12), 5, 32, 40)
    assert torch.equal(together, render_clips(clips, range(12), 5, 32, 40))
    for index in (0, 5, 11):
        alone = render_clips([clips[index]], [index], 5, 32, 40)[0]
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_pixels_move_as_the_caption_says(motion: str) -> None:
    clip = replace(BLACK, motion=motion, speed=None if motion == "still" else "quickly")
    for seed in range(3):
        x, y, area = darkness(render_clips([clip], [seed], 9, 64, 64)[0].transpose(0, 1))
        # From frame to frame, in pixels; the way of a quick object is 0.4 to 0.48 of the side.
        dx, dy, swell = x.diff(), y.diff(), area.diff()
        wanted_x = {"right": 1.0, "left": -1.0}.get(motion, 0.0)
        wanted_y = {"down": 1.0, "up": -1.0}.get(motion, 0.0)
        for steps, wanted in ((dx, wanted_x), (dy, wanted_y)):
            assert bool((steps * wanted > 0.02 * 64).all()) if wanted else bool((steps.abs() < 0.7).all())
        if motion in ("growing", "shrinking"):
            assert bool((swell > 0).all() if motion == "growing" else (swell < 0).all())
        else:
            assert bool((swell.abs() < 0.1 * area[0]).all())


def test_quick_goes_further_than_slow_and_rolling_turns_without_slipping() -> None:
    slow, quick = (clip_paths([replace(BLACK, speed=speed)], [0], 17, 96, 96)[0] for speed in ("slowly", "quickly"))
    ways = [float(path[-1, 0] - path[0, 0]) for path in (slow, quick)]
    assert 0.16 * 96 <= ways[0] <= 0.24 * 96 and 0.40 * 96 <= ways[1] <= 0.48 * 96


def test_rolling_right_turns_clockwise_and_the_light_stays() -> None:
    clip = parse_clip("a large white striped ball rolling right quickly on brick")
    assert clip is not None
    rolled, slid = (render_clips([replace(clip, rolling=way)], [3], 17, 96, 96)[0] for way in (True, False))
    path = clip_paths([clip], [3], 17, 96, 96)[0]
    turned = float((path[-1, 0] - path[0, 0]) / path[0, 2])
    # Turned back by the angle of a wheel that does not slip, the last frame's stripes are those of the first.
    first, last = (_disc(rolled[:, frame], path[frame], angle) for frame, angle in ((0, 0.0), (-1, turned)))
    unturned = _disc(rolled[:, -1], path[-1], 0.0)
    assert _correlation(first, last) > 0.8 > _correlation(first, unturned)
    assert _correlation(_disc(slid[:, 0], path[0], 0.0), _disc(slid[:, -1], path[-1], 0.0)) > 0.95


def _disc(image: Tensor, place: Tensor, angle: float) -> Tensor:
    """Grey values around ``place``, read along axes that are turned clockwise by ``angle``."""
    x, y, radius = (float(value) for value in place)
    v, u = torch.meshgrid(torch.linspace(-0.6, 0.6, 24), torch.linspace(-0.6, 0.6, 24), indexing="ij")
    right = u * math.cos(angle) - v * math.sin(angle)
    down = u * math.sin(angle) + v * math.cos(angle)
    size = image.shape[-1]
    grid = torch.stack(((x + radius * right) / size, (y + radius * down) / size), dim=-1) * 2 - 1
    return torch.nn.functional.grid_sample(image[None], grid[None], align_corners=False)[0].mean(0)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def test_objects_stay_inside_and_the_background_stands_still() -> None:
    clips = clips_of(300, seed=5)
    for height, width in ((96, 96), (64, 96)):
        paths = clip_paths(clips, range(300), 17, height, width)
        x, y, radius = paths.unbind(-1)
        for place, side in ((x, width), (y, height)):
            assert bool((place - radius >= 0).all()) and bool((place + radius <= side).all())
    clip = replace(BLACK, item=replace(BLACK.item, size="small"))
    frames = render_clips([replace(clip, background=name) for name in BACKGROUNDS], [1] * 9, 5, 48, 48)
    path = clip_paths([clip], [1], 5, 48, 48)[0]
    y = torch.arange(48)
    far = (y - path[0, 1]).abs() > 2 * path[0, 2]
    assert bool(far.any())
    assert bool((frames[:, :, 1:, far] == frames[:, :, :1, far]).all())


def test_the_seed_moves_the_object_and_draws_what_is_unspoken() -> None:
    spoken = parse_clip("a star")
    assert spoken is not None
    clips = render_clips([spoken] * 8, range(8), 3, 32, 32)
    assert all(not torch.equal(clips[0], other) for other in clips[1:])


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(UsageError, match="give as many"):
        render_clips([BLACK], [1, 2], 5, 32, 32)
    with pytest.raises(UsageError, match="16 x 16"):
        render_clips([BLACK], [1], 0, 32, 32)
    with pytest.raises(UsageError, match="not one of"):
        render_clips([replace(BLACK, motion="sideways")], [1], 5, 32, 32)
