"""Scenes of one or two objects, the captions that describe them, and the held-out split.

Nothing here needs torch: a scene is plain data, a caption is a short lower-case sentence over
:data:`VOCABULARY`, and :func:`parse` reads every caption that :func:`caption` can write.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from stepvar.errors import UsageError

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLOURS: tuple[str, ...] = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black",
)  # fmt: skip
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
SIZES: tuple[str, ...] = ("small", "large")
BACKGROUNDS: tuple[str, ...] = (
    "sky", "sunset", "snow", "night", "grass", "sand", "water", "wood", "brick",
)  # fmt: skip
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

_IGNORED = frozenset({"a", "the", "to", "is"})
_PREPOSITIONS = frozenset({"on", "in", "under", "at"})
_ATTRIBUTES: dict[str, str] = {
    **{word: "size" for word in SIZES},
    **{word: "colour" for word in COLOURS},
    **{word: "texture" for word in TEXTURES},
}
_RELATION_WORDS: dict[tuple[str, ...], str] = {tuple(relation.split()): relation for relation in RELATIONS}
HELD_OUT_ONE_IN = 16


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
    """Draw a fully specified scene uniformly.

    ``objects`` is 1 or 2 (``None``: either, evenly). Two objects always differ in colour and in shape
    and always have a relation. Raises ``UsageError`` for another number of objects.
    """
    count = rng.randint(1, 2) if objects is None else objects
    if count not in (1, 2):
        raise UsageError(f"a scene has 1 or 2 objects, not {count}")
    shapes = rng.sample(SHAPES, count)
    colours = rng.sample(COLOURS, count)
    members = tuple(
        SceneObject(shape, colour, rng.choice(TEXTURES), rng.choice(SIZES))
        for shape, colour in zip(shapes, colours, strict=True)
    )
    relation = rng.choice(RELATIONS) if count == 2 else None
    return Scene(members, relation, rng.choice(BACKGROUNDS))


def sample_training_scene(rng: random.Random, objects: int | None = None) -> Scene:
    """Draw like :func:`sample_scene`, but never a held-out scene."""
    while True:
        scene = sample_scene(rng, objects)
        if not is_held_out(scene):
            return scene


def noun_phrase(item: SceneObject, plain_spoken: bool = False) -> str:
    texture = item.texture if item.texture != "plain" or plain_spoken else None
    words = [word for word in (item.size, item.colour, texture, item.shape) if word is not None]
    article = "an" if words and words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _loosen(item: SceneObject, rng: random.Random) -> str:
    # The texture is never left out: its absence means "plain", so leaving it out would be a lie.
    size = None if rng.random() < 0.25 else item.size
    colour = None if rng.random() < 0.04 else item.colour
    return noun_phrase(replace(item, size=size, colour=colour), plain_spoken=rng.random() < 0.1)


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Describe a scene in lower-case words of :data:`VOCABULARY`.

    Without ``rng``: the one canonical caption, which speaks every attribute that is not ``None``. With
    ``rng``: a true paraphrase, which may leave out sizes, a colour, the relation or the background, or
    name the two objects in the other order.
    """
    say = noun_phrase if rng is None else (lambda item: _loosen(item, rng))
    relation, members = scene.relation, scene.objects
    if rng is not None and len(members) == 2:
        draw = rng.random()
        if draw < 0.12:
            relation = None
        if draw < 0.06 or draw > 0.75:
            members = (members[1], members[0])
            relation = INVERSE[relation] if relation is not None else None
    text = f" {relation or 'and'} ".join(say(item) for item in members)
    background = background_phrase(scene.background, rng)
    return f"{text} {background}" if background else text


def background_phrase(background: str | None, rng: random.Random | None) -> str | None:
    if background is None:
        return None
    phrases = _PHRASES[background]
    if rng is None:
        return phrases[0]
    draw = rng.random()
    if draw < 0.05:
        return None
    return phrases[0] if draw < 0.6 else rng.choice(phrases)


def words(text: str) -> tuple[str, ...]:
    """Split a caption into lower-case words, without punctuation and with synonyms replaced."""
    return tuple(SYNONYMS.get(word, word) for word in re.findall(r"[^\W\d_]+", text.lower()))


_BACKGROUND_WORDS: dict[tuple[str, ...], str] = {
    tuple(word for word in words(phrase)[1:] if word not in _IGNORED): background
    for background, phrases in _PHRASES.items()
    for phrase in phrases
}
_BACKGROUND_WORDS.update({(background,): background for background in BACKGROUNDS})


def parse(text: str) -> Scene | None:
    """Read a caption; ``None`` when it is not understood.

    Case, commas, articles and extra spaces do not matter, and synonyms are accepted. Attributes that
    the caption does not speak of are ``None``, except the texture: no texture word means "plain".
    """
    rest = [word for word in words(text) if word not in _IGNORED]
    first, rest = _take_object(rest)
    if first is None:
        return None
    members: tuple[SceneObject, ...] = (first,)
    relation: str | None = None
    if rest and rest[0] not in _PREPOSITIONS:
        relation, rest, understood = _take_relation(rest)
        second, rest = _take_object(rest)
        if not understood or second is None:
            return None
        members = (first, second)
    if not rest:
        return Scene(members, relation, None)
    background = _BACKGROUND_WORDS.get(tuple(rest[1:]))
    if rest[0] not in _PREPOSITIONS or background is None:
        return None
    return Scene(members, relation, background)


def _take_object(rest: list[str]) -> tuple[SceneObject | None, list[str]]:
    found: dict[str, str] = {}
    for index, word in enumerate(rest):
        if word in SHAPES:
            texture = found.get("texture", "plain")
            item = SceneObject(word, found.get("colour"), texture, found.get("size"))
            return item, rest[index + 1 :]
        kind = _ATTRIBUTES.get(word)
        if kind is None or kind in found:
            break
        found[kind] = word
    return None, rest


def _take_relation(rest: list[str]) -> tuple[str | None, list[str], bool]:
    if rest[0] == "and":
        return None, rest[1:], True
    for length in (1, 2):
        relation = _RELATION_WORDS.get(tuple(rest[:length]))
        if relation is not None:
            return relation, rest[length:], True
    return None, rest, False


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


def describes(spoken: Scene, scene: Scene) -> bool:
    """Whether everything that ``spoken`` says is true of the fully specified ``scene``."""
    if len(spoken.objects) != len(scene.objects):
        return False
    if spoken.background not in (None, scene.background):
        return False
    swapped = (scene.objects[1], scene.objects[0]) if len(scene.objects) == 2 else scene.objects
    inverse = INVERSE[scene.relation] if scene.relation is not None else None
    for members, relation in ((scene.objects, scene.relation), (swapped, inverse)):
        pairs = zip(spoken.objects, members, strict=True)
        if spoken.relation in (None, relation) and all(_object_describes(said, item) for said, item in pairs):
            return True
    return False


def _object_describes(spoken: SceneObject, item: SceneObject) -> bool:
    fields = ("shape", "colour", "texture", "size")
    return all(getattr(spoken, name) in (None, getattr(item, name)) for name in fields)


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
    return (mixed >> 12) % HELD_OUT_ONE_IN == 0


def held_out_scenes(n: int, seed: int = 0, objects: int | None = None) -> list[Scene]:
    """Draw ``n`` distinct held-out scenes, the same ones for the same arguments.

    With ``objects`` ``None`` half of them have one object, as far as there are that many. Raises
    ``UsageError`` when there are fewer than ``n`` (about 320 have one object).
    """
    rng = random.Random(seed)
    singles = rng.sample(_single_held_out(), k=len(_single_held_out())) if objects != 2 else []
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


def _vocabulary() -> Iterable[str]:
    yield from ("a", "an", "and", "plain")
    for group in (SHAPES, COLOURS, TEXTURES, SIZES, BACKGROUNDS):
        yield from group
    for phrase in itertools.chain(RELATIONS, *_PHRASES.values()):
        yield from phrase.split()
    yield from SYNONYMS


VOCABULARY: tuple[str, ...] = tuple(sorted(set(_vocabulary())))
"""Every word that captions use, and the synonyms; sorted."""
