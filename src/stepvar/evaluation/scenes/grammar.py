"""Scenes of one or two objects, the captions that describe them, and the held-out split.

Nothing here needs torch: a scene is plain data, a caption is a short lower-case sentence over
:data:`VOCABULARY`, and :func:`parse` reads every caption that :func:`caption` can write.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Mapping
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

# The first phrase of each background is its canonical one.
_PHRASES: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "under the sky"),
    "sunset": ("under a sunset sky", "at sunset"),
    "snow": ("on snow", "on the snow", "in the snow"),
    "night": ("in the night", "at night", "under a night sky"),
    "grass": ("on grass", "on the grass"),
    "sand": ("on sand", "on the sand"),
    "water": ("on water", "on the water"),
    "wood": ("on wood", "on a wood floor"),
    "brick": ("on brick", "on a brick wall"),
}

SYNONYMS: dict[str, str] = {
    "an": "a",
    "beach": "sand",
    "beneath": "below",
    "big": "large",
    "box": "square",
    "bricks": "brick",
    "checked": "checkered",
    "chequered": "checkered",
    "disc": "circle",
    "disk": "circle",
    "donut": "ring",
    "dusk": "sunset",
    "lawn": "grass",
    "little": "small",
    "plus": "cross",
    "rhombus": "diamond",
    "sea": "water",
    "solid": "plain",
    "spotted": "dotted",
    "stripy": "striped",
    "tiny": "small",
    "violet": "purple",
    "wooden": "wood",
}
"""Accepted words and the word of the captions that each stands for."""

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "and", "plain", *SHAPES, *COLOURS, *TEXTURES, *SIZES, *BACKGROUNDS, *SYNONYMS}
        | set(" ".join(itertools.chain(RELATIONS, *_PHRASES.values())).split())
    )
)
"""Every word that captions use, and the synonyms; sorted."""

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


def sample_training_scene(rng: random.Random, objects: int | None = None) -> Scene:
    """Sample like :func:`sample_scene`, but never a held-out scene."""
    while is_held_out(scene := sample_scene(rng, objects)):
        pass
    return scene


def noun_phrase(item: SceneObject, rng: random.Random | None = None) -> str:
    """An object in words; ``rng``: a true paraphrase, which may leave out the size or the colour."""
    size, colour, texture = item.size, item.colour, item.texture
    plain_spoken = False
    if rng is not None:
        # The texture is never left out: its absence means "plain", so leaving it out would be a lie.
        size = None if rng.random() < 0.25 else size
        colour = None if rng.random() < 0.04 else colour
        plain_spoken = rng.random() < 0.1
    if texture == "plain" and not plain_spoken:
        texture = None
    words = [word for word in (size, colour, texture, item.shape) if word is not None]
    return " ".join(["an" if words and words[0][0] in "aeiou" else "a", *words])


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Describe a scene in lower-case words of :data:`VOCABULARY`.

    Without ``rng``: the one canonical caption, which speaks every attribute that is not ``None``. With
    ``rng``: a true paraphrase, which may leave out sizes, a colour, the relation or the background, or
    name the two objects in the other order.
    """
    relation, members = scene.relation, scene.objects
    if rng is not None and len(members) == 2:
        chance = rng.random()
        if chance < 0.12:
            relation = None
        if chance < 0.06 or chance > 0.75:
            members = (members[1], members[0])
            relation = INVERSE[relation] if relation is not None else None
    text = f" {relation or 'and'} ".join(noun_phrase(item, rng) for item in members)
    background = background_phrase(scene.background, rng)
    return f"{text} {background}" if background else text


def background_phrase(background: str | None, rng: random.Random | None) -> str | None:
    if background is None:
        return None
    phrases = _PHRASES[background]
    if rng is None:
        return phrases[0]
    chance = rng.random()
    if chance < 0.05:
        return None
    return phrases[0] if chance < 0.6 else rng.choice(phrases)


def content_words(text: str, synonyms: Mapping[str, str] = SYNONYMS) -> list[str]:
    """The lower-case words of a caption without punctuation and articles, synonyms replaced."""
    found = (synonyms.get(word, word) for word in re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in found if word not in ("a", "the", "to", "is")]


_ATTRIBUTES = {**dict.fromkeys(SIZES, "size"), **dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(TEXTURES, "texture")}
# What follows the preposition, in content words.
_BACKGROUND_WORDS = {
    " ".join(content_words(phrase)[1:]): background for background, phrases in _PHRASES.items() for phrase in phrases
} | {background: background for background in BACKGROUNDS}
_OBJECT = f"(?:(?:{'|'.join(_ATTRIBUTES)}) )*(?:{'|'.join(SHAPES)})"
_CAPTION = re.compile(
    f"(?P<first>{_OBJECT})(?: (?P<relation>and|{'|'.join(RELATIONS)}) (?P<second>{_OBJECT}))?"
    f"(?: (?:on|in|under|at) (?P<background>{'|'.join(_BACKGROUND_WORDS)}))?"
)


def parse(text: str) -> Scene | None:
    """Read a caption; ``None`` when it is not understood.

    Case, commas, articles and extra spaces do not matter, and synonyms are accepted. Attributes that
    the caption does not speak of are ``None``, except the texture: no texture word means "plain".
    """
    found = _CAPTION.fullmatch(" ".join(content_words(text)))
    if found is None:
        return None
    members: list[SceneObject] = []
    for phrase in filter(None, (found["first"], found["second"])):
        *words, shape = phrase.split()
        said = {_ATTRIBUTES[word]: word for word in words}
        if len(said) < len(words):
            return None
        members.append(SceneObject(shape, said.get("colour"), said.get("texture", "plain"), said.get("size")))
    relation = None if found["relation"] == "and" else found["relation"]
    return Scene(tuple(members), relation, _BACKGROUND_WORDS.get(found["background"]))


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
