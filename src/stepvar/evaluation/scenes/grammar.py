"""Scenes of one or two objects, the captions that describe them, and the held-out split.

Nothing here needs torch: a scene is plain data, a caption a short lower-case sentence.
"""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass

from stepvar.errors import UsageError

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
SIZES: tuple[str, ...] = ("small", "large")
BACKGROUNDS: tuple[str, ...] = ("sky", "sunset", "snow", "night", "grass", "sand", "water", "wood", "brick")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")

INVERSE: dict[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""The relation that says the same thing with the two objects exchanged."""

_PLACES: dict[str, str] = {
    "sky": "in the sky",
    "sunset": "under a sunset sky",
    "night": "in the night",
    **{name: f"on {name}" for name in ("snow", "grass", "sand", "water", "wood", "brick")},
}
"""How captions speak of each background."""

_HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class SceneObject:
    """One object. ``None`` means that the attribute is not spoken of; an unspoken texture is "plain"."""

    shape: str | None
    colour: str | None
    texture: str | None = "plain"
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """One or two objects before a background.

    ``relation`` says where the first object is with respect to the second ("left of": the first is on
    the left); it is ``None`` for one object, or for two whose places are not spoken of.
    """

    objects: tuple[SceneObject, ...]
    relation: str | None = None
    background: str | None = None


def sample_scene(rng: random.Random, objects: int | None = None) -> Scene:
    """Sample a fully specified scene uniformly; two objects differ in colour and in shape and have a relation.

    ``objects`` is 1 or 2 (``None``: either, evenly). Raises ``UsageError`` for another number of objects.
    """
    count = rng.randint(1, 2) if objects is None else objects
    if count not in (1, 2):
        raise UsageError(f"a scene has 1 or 2 objects, not {count}")
    kinds = zip(rng.sample(SHAPES, count), rng.sample(COLOURS, count), strict=True)
    members = tuple(SceneObject(*kind, rng.choice(TEXTURES), rng.choice(SIZES)) for kind in kinds)
    relation = rng.choice(RELATIONS) if count == 2 else None
    return Scene(members, relation, rng.choice(BACKGROUNDS))


def noun_phrase(item: SceneObject, name_plain: bool = False) -> str:
    """An object in words; a plain texture goes without saying unless ``name_plain``."""
    texture = None if item.texture == "plain" and not name_plain else item.texture
    words = [word for word in (item.size, item.colour, texture, item.shape) if word is not None]
    return " ".join(["an" if words and words[0][0] in "aeiou" else "a", *words])


def caption(scene: Scene) -> str:
    """The canonical caption of a scene, in lower case: it speaks every attribute that is not ``None``."""
    text = f" {scene.relation or 'and'} ".join(map(noun_phrase, scene.objects))
    return text if scene.background is None else f"{text} {background_phrase(scene.background)}"


def background_phrase(background: str) -> str:
    return _PLACES[background]


def normal_form(scene: Scene) -> Scene:
    """The same scene with its objects in one fixed order.

    "right of" and "below" become "left of" and "above"; objects without a relation are sorted. Scenes
    that say the same thing have equal normal forms.
    """
    if len(scene.objects) < 2:
        return scene
    first, second = scene.objects
    if scene.relation in ("right of", "below"):
        return Scene((second, first), INVERSE[scene.relation], scene.background)
    if scene.relation is None and noun_phrase(second) < noun_phrase(first):
        return Scene((second, first), None, scene.background)
    return scene


def is_held_out(scene: Scene) -> bool:
    """Whether a scene belongs to the 1/16 of distinct scenes that are never trained on.

    The answer depends on the canonical caption of the normal form alone, so it is the same on every
    machine, and "x left of y" is held out exactly when "y right of x" is.
    """
    return is_held_out_text(caption(normal_form(scene)))


def is_held_out_text(text: str) -> bool:
    """Whether a canonical caption belongs to the held-out 1/16."""
    digest = zlib.crc32(text.encode("ascii"))
    # The low bits of a CRC are linear in the text; mixing spreads similar captions evenly.
    mixed = ((digest ^ (digest >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (mixed >> 12) % _HELD_OUT_ONE_IN == 0


def held_out_scenes(n: int, seed: int = 0, objects: int | None = None) -> list[Scene]:
    """Sample ``n`` distinct held-out scenes, the same ones for the same arguments.

    With ``objects`` ``None`` half of them have one object, as far as there are that many. Raises
    ``UsageError`` when there are fewer than ``n`` (about 320 have one object).
    """
    rng = random.Random(seed)
    singles = [] if objects == 2 else _single_held_out()
    singles = rng.sample(singles, len(singles))
    if objects == 1:
        if n > len(singles):
            raise UsageError(f"only {len(singles)} one-object scenes are held out, not {n}")
        return singles[:n]
    chosen = singles[: n // 2]
    seen: set[Scene] = set()
    while len(chosen) < n:
        scene = sample_scene(rng, 2 if objects is None else objects)
        if is_held_out(scene) and normal_form(scene) not in seen:
            seen.add(normal_form(scene))
            chosen.append(scene)
    rng.shuffle(chosen)
    return chosen


def _single_held_out() -> list[Scene]:
    kinds = itertools.product(SHAPES, COLOURS, TEXTURES, SIZES, BACKGROUNDS)
    scenes = (Scene((SceneObject(*kind[:4]),), None, kind[4]) for kind in kinds)
    return [scene for scene in scenes if is_held_out(scene)]
