"""The captions that the embedded models are trained on: paraphrases, their words, and a parser that reads them.

The canonical captions and the held-out split are those of :mod:`stepvar.evaluation.scenes.grammar`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import replace

from stepvar.evaluation.scenes.grammar import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    background_phrase,
    is_held_out,
    noun_phrase,
    sample_scene,
)

OTHER_PLACES: dict[str, tuple[str, ...]] = {
    "sky": ("under the sky",),
    "sunset": ("at sunset",),
    "snow": ("on the snow", "in the snow"),
    "night": ("at night", "under a night sky"),
    "grass": ("on the grass",),
    "sand": ("on the sand",),
    "water": ("on the water",),
    "wood": ("on a wood floor",),
    "brick": ("on a brick wall",),
}
"""How paraphrases speak of each background beside its canonical phrase."""


def places(background: str) -> tuple[str, ...]:
    """All phrases of a background, the canonical one first."""
    return (background_phrase(background), *OTHER_PLACES[background])


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
        | set(" ".join(itertools.chain(RELATIONS, *map(places, BACKGROUNDS))).split())
    )
)
"""Every word that captions use, and the synonyms; sorted."""


def sample_training_scene(rng: random.Random, objects: int | None = None) -> Scene:
    """Sample like :func:`sample_scene`, but never a held-out scene."""
    while is_held_out(scene := sample_scene(rng, objects)):
        pass
    return scene


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A true description of a scene in lower-case words of :data:`VOCABULARY`.

    It may leave out sizes, a colour, the relation or the background, or name the two objects in the other order.
    """
    relation, members = scene.relation, scene.objects
    if len(members) == 2:
        chance = rng.random()
        if chance < 0.12:
            relation = None
        if chance < 0.06 or chance > 0.75:
            members = (members[1], members[0])
            relation = INVERSE[relation] if relation is not None else None
    text = f" {relation or 'and'} ".join(paraphrase_object(item, rng) for item in members)
    background = paraphrase_background(scene.background, rng)
    return f"{text} {background}" if background else text


def paraphrase_object(item: SceneObject, rng: random.Random) -> str:
    """An object in words, which may leave out the size or the colour."""
    size = None if rng.random() < 0.25 else item.size
    colour = None if rng.random() < 0.04 else item.colour
    # The texture is never left out: its absence means "plain", so leaving it out would be a lie.
    return noun_phrase(replace(item, size=size, colour=colour), name_plain=rng.random() < 0.1)


def paraphrase_background(background: str | None, rng: random.Random) -> str | None:
    if background is None:
        return None
    phrases = places(background)
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
    " ".join(content_words(phrase)[1:]): background for background in BACKGROUNDS for phrase in places(background)
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
