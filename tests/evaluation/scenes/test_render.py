from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.evaluation.scenes.grammar import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Scene,
    SceneObject,
    sample_scene,
)
from stepvar.evaluation.scenes.noise import lattice, seed_keys, value_noise
from stepvar.evaluation.scenes.render import PALETTE, arrange, layouts, render


class Place(NamedTuple):
    """Centre and radius of an object in pixels."""

    x: float
    y: float
    radius: float


def layout(scene: Scene, seed: int, height: int, width: int) -> list[Place]:
    """Where the objects of a scene are."""
    places = layouts([scene], [seed], height, width)[0]
    return [Place(*row.tolist()) for row in places[: len(scene.objects)]]


def scenes_of(count: int, objects: int | None = None, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, objects) for _ in range(count)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 72), (72, 48), (33, 100)])
def test_images_have_the_size_asked_for_and_stay_in_range(height: int, width: int) -> None:
    images = render(scenes_of(20), range(20), height, width)
    assert images.shape == (20, 3, height, width)
    assert images.dtype == torch.float32
    assert bool(torch.isfinite(images).all())
    assert images.min() >= -1.0 and images.max() <= 1.0


def test_an_image_does_not_depend_on_the_batch() -> None:
    scenes = scenes_of(24)
    together = render(scenes, range(24), 40, 56)
    assert torch.equal(together, render(scenes, range(24), 40, 56))
    backwards = render(scenes[::-1], range(23, -1, -1), 40, 56).flip(0)
    torch.testing.assert_close(together, backwards, rtol=0, atol=1e-6)
    for index in (0, 7, 23):
        alone = render([scenes[index]], [index], 40, 56)[0]
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-6)


def test_the_seed_moves_the_object_and_changes_the_background() -> None:
    scene = scenes_of(1, objects=1)[0]
    first, second = render([scene, scene], [1, 2], 64, 64)
    assert (first - second).abs().mean() > 0.02
    assert layout(scene, 1, 64, 64) != layout(scene, 2, 64, 64)


def test_seeds_of_any_size_and_sign_are_accepted() -> None:
    scene = scenes_of(1)[0]
    images = render([scene] * 3, [-1, 2**40, 2**63], 32, 32)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "ring"])
def test_the_middle_of_a_plain_object_has_its_colour(shape: str, colour: str) -> None:
    scene = Scene((SceneObject(shape, colour, "plain", "large"),), None, "brick")
    image = (render([scene], [5], 64, 64)[0] + 1.0) / 2.0
    place = layout(scene, 5, 64, 64)[0]
    seen = image[:, int(place.y), int(place.x)]
    distances = {name: float((seen - torch.tensor(tones[0])).abs().max()) for name, tones in PALETTE.items()}
    assert min(distances, key=lambda name: distances[name]) == colour
    assert distances[colour] < 0.12


def test_the_middle_of_a_ring_shows_the_background() -> None:
    scene = Scene((SceneObject("ring", "black", "plain", "large"),), None, "snow")
    place = layout(scene, 3, 64, 64)[0]
    image = render([scene], [3], 64, 64)[0]
    assert image[:, int(place.y), int(place.x)].min() > 0.0
    assert image[:, int(place.y), int(place.x + 0.76 * place.radius)].max() < -0.5


def test_textures_show_two_tones() -> None:
    for texture in TEXTURES:
        scene = Scene((SceneObject("square", "blue", texture, "large"),), None, "sand")
        place = layout(scene, 2, 128, 128)[0]
        half = int(0.5 * place.radius)
        x, y = int(place.x), int(place.y)
        middle = render([scene], [2], 128, 128)[0, :, y - half : y + half, x - half : x + half]
        spread = float(middle[1].max() - middle[1].min())
        assert (spread < 0.3) if texture == "plain" else (spread > 0.6)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(64, 64), (64, 96), (96, 64), (48, 120)]))
def test_the_relation_holds_in_the_layout_and_objects_do_not_overlap(seed: int, size: tuple[int, int]) -> None:
    scene = sample_scene(random.Random(seed), 2)
    first, second = layout(scene, seed, *size)
    apart = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }
    unit = min(size)
    assert scene.relation is not None
    gap = apart[scene.relation]
    assert gap >= first.radius + second.radius + 0.05 * unit
    assert max(apart.values()) == gap
    for place in (first, second):
        assert place.radius <= place.x <= size[1] - place.radius
        assert place.radius <= place.y <= size[0] - place.radius


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_sizes_are_far_apart(seed: int) -> None:
    for objects in (1, 2):
        scene = sample_scene(random.Random(seed), objects)
        for item, place in zip(scene.objects, layout(scene, seed, 100, 150), strict=True):
            diameter = 2.0 * place.radius / 100
            assert (0.35 < diameter < 0.51) if item.size == "large" else (0.17 < diameter < 0.27)
        assert bool((arrange([scene], [seed], 100, 150)[0].tilt.abs() < 0.15).all())


def test_layouts_of_one_object_have_it_twice_and_do_not_depend_on_the_batch() -> None:
    scenes = scenes_of(12)
    table = layouts(scenes, range(12), 80, 60)
    for index, scene in enumerate(scenes):
        assert torch.equal(table[index], layouts([scene], [index], 80, 60)[0])
        assert torch.equal(table[index, 0], table[index, 1]) == (len(scene.objects) == 1)


def test_what_is_unspoken_follows_from_the_seed() -> None:
    scene = Scene((SceneObject("circle", None, "plain", None), SceneObject("star", None, "plain", None)))
    images = render([scene] * 8, range(8), 48, 48)
    assert len({tuple(image.mean((1, 2)).tolist()) for image in images}) == 8
    arranged = set()
    for seed in range(60):
        first, second = layout(scene, seed, 48, 48)
        horizontal = abs(first.x - second.x) > abs(first.y - second.y)
        arranged.add((horizontal, first.x < second.x if horizontal else first.y < second.y))
    assert len(arranged) == len(RELATIONS)


def test_backgrounds_differ_from_one_another() -> None:
    item = SceneObject("circle", "red", "plain", "small")
    scenes = [Scene((item,), None, background) for background in BACKGROUNDS]
    means = render(scenes, [4] * len(scenes), 64, 64).mean((2, 3))
    apart = torch.cdist(means, means) + 9.0 * torch.eye(len(scenes))
    assert apart.min() > 0.1


def test_bad_arguments_are_refused() -> None:
    scene = scenes_of(1, objects=1)[0]
    with pytest.raises(ValueError, match="as many"):
        render([scene], [1, 2], 32, 32)
    with pytest.raises(ValueError, match="at least one"):
        render([], [], 32, 32)
    with pytest.raises(ValueError, match="16 x 16"):
        render([scene], [1], 8, 32)
    with pytest.raises(ValueError, match="mars"):
        render([replace(scene, background="mars")], [1], 32, 32)
    with pytest.raises(ValueError, match="1 or 2"):
        render([replace(scene, objects=())], [1], 32, 32)


def test_hash_is_uniform_and_fixed() -> None:
    values = lattice(seed_keys(range(64)), 16, 16, salt=9)
    assert abs(float(values.mean()) - 0.5) < 0.01
    assert abs(float(values.var()) - 1 / 12) < 0.002
    assert values.unique().numel() > 16000
    # The images of a seed are part of published figures: the hash must not change.
    fixed = (lattice(seed_keys([12345]), 1, 3, salt=0)[0, 0] * 2**24).long().tolist()
    assert fixed == [4044770, 520798, 1476892]


def test_value_noise_is_smooth() -> None:
    noise = value_noise(seed_keys([1, 2]), 64, 64, (16.0, 16.0), salt=0)
    assert noise.shape == (2, 64, 64)
    assert float(noise.min()) >= 0.0 and float(noise.max()) < 1.0
    assert float(noise.diff(dim=2).abs().max()) < 0.15
