"""Clips of one object that moves before a background, the captions that describe them, and the held-out split.

An extension of the still grammar: objects and backgrounds are those of :mod:`stepvar.evaluation.scenes.grammar`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..grammar import (
    SYNONYMS,
    VOCABULARY,
    SceneObject,
    background_phrase,
    content_words,
    is_held_out_text,
    noun_phrase,
    parse,
    sample_scene,
)

MOTIONS: tuple[str, ...] = ("left", "right", "up", "down", "growing", "shrinking", "still")
"""What an object does in the course of a clip."""

SPEEDS: tuple[str, ...] = ("slowly", "quickly")

# How a motion without and with rolling is said; the first phrase is the canonical one.
_PHRASES: dict[tuple[str, bool], tuple[str, ...]] = {
    ("left", False): ("moving left", "moving to the left"),
    ("right", False): ("moving right", "moving to the right"),
    ("up", False): ("moving up", "rising"),
    ("down", False): ("moving down", "falling"),
    ("growing", False): ("growing",),
    ("shrinking", False): ("shrinking",),
    ("still", False): ("standing still", "resting"),
    ("left", True): ("rolling left", "rolling to the left"),
    ("right", True): ("rolling right", "rolling to the right"),
}

CLIP_SYNONYMS: dict[str, str] = {
    **SYNONYMS,
    "ball": "circle",
    "downward": "down",
    "downwards": "down",
    "dropping": "falling",
    "fast": "quickly",
    "floating": "moving",
    "flying": "moving",
    "gliding": "moving",
    "going": "moving",
    "leftward": "left",
    "leftwards": "left",
    "motionless": "still",
    "rapidly": "quickly",
    "rightward": "right",
    "rightwards": "right",
    "sliding": "moving",
    "slow": "slowly",
    "upward": "up",
    "upwards": "up",
}
"""Accepted words and the word of the captions that each stands for."""

CLIP_VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*VOCABULARY, *SPEEDS, *CLIP_SYNONYMS}
        | {word for phrases in _PHRASES.values() for word in " ".join(phrases).split()}
    )
)
"""Every word that captions of clips use, and the synonyms; sorted."""


@dataclass(frozen=True)
class Clip:
    """One object before a background that stands still. ``None`` means that the attribute is not spoken of.

    Attributes:
        item: the object; its size is that in the middle of the clip.
        motion: one of :data:`MOTIONS`.
        rolling: whether it turns as it moves left or right, like a wheel.
        speed: one of :data:`SPEEDS`; None for an object that stands still.
        background: see the still grammar.
    """

    item: SceneObject
    motion: str | None = None
    rolling: bool = False
    speed: str | None = None
    background: str | None = None


def sample_clip(rng: random.Random) -> Clip:
    """Sample a fully specified clip: motions evenly, half of those to a side rolling."""
    scene = sample_scene(rng, 1)
    motion = rng.choice(MOTIONS)
    rolling = (motion, True) in _PHRASES and rng.random() < 0.5
    speed = None if motion == "still" else rng.choice(SPEEDS)
    return Clip(scene.objects[0], motion, rolling, speed, scene.background)


def sample_training_clip(rng: random.Random) -> Clip:
    """Sample like :func:`sample_clip`, but never a held-out clip."""
    while is_held_out_clip(clip := sample_clip(rng)):
        pass
    return clip


def clip_caption(clip: Clip, rng: random.Random | None = None) -> str:
    """Describe a clip in lower-case words of :data:`CLIP_VOCABULARY`.

    Without ``rng``: the one canonical caption, which speaks every attribute that is not ``None``. With ``rng``: a true
    paraphrase, which may leave out the size, a colour, the motion, the speed or the background.
    """
    motion, speed = clip.motion, clip.speed
    parts = [noun_phrase(clip.item, rng)]
    if rng is not None:
        speed = None if rng.random() < 0.35 else speed
        motion = None if rng.random() < 0.03 else motion
    if motion is not None:
        parts.append(_motion_phrase(motion, clip.rolling, speed, rng))
    background = background_phrase(clip.background, rng)
    return " ".join([*parts, background] if background else parts)


def _motion_phrase(motion: str, rolling: bool, speed: str | None, rng: random.Random | None) -> str:
    phrases = _PHRASES[motion, rolling]
    phrase = phrases[0] if rng is None or rng.random() < 0.5 else rng.choice(phrases)
    if speed is None:
        return phrase
    verb, *direction = phrase.split()
    if rng is not None and direction and rng.random() < 0.4:
        return " ".join([verb, speed, *direction])
    return f"{phrase} {speed}"


_MEANINGS: dict[tuple[str, ...], tuple[str, bool]] = {
    tuple(content_words(phrase)): meaning for meaning, phrases in _PHRASES.items() for phrase in phrases
}
_MEANINGS |= {("still",): ("still", False), ("falling", "down"): ("down", False), ("rising", "up"): ("up", False)}
_MOTION_WORDS = frozenset(word for meaning in _MEANINGS for word in meaning) | set(SPEEDS)


def parse_clip(text: str) -> Clip | None:
    """Read a caption; ``None`` when it is not understood.

    Case, commas, articles and extra spaces do not matter, and synonyms are accepted. What the caption does not speak
    of is ``None``, except the texture (no word means "plain") and rolling (no word means that it does not).
    """
    spoken = content_words(text, CLIP_SYNONYMS)
    places = [index for index, word in enumerate(spoken) if word in _MOTION_WORDS]
    start, end = (places[0], places[-1] + 1) if places else (0, 0)
    if len(places) != end - start:
        return None
    scene = parse(" ".join([*spoken[:start], *spoken[end:]]))
    if scene is None or len(scene.objects) != 1:
        return None
    if not places:
        return Clip(scene.objects[0], background=scene.background)
    speeds = [word for word in spoken[start:end] if word in SPEEDS]
    meaning = _MEANINGS.get(tuple(word for word in spoken[start:end] if word not in SPEEDS))
    # The object is named before what it does.
    named_first = parse(" ".join(spoken[:start])) is not None
    if not named_first or meaning is None or len(speeds) > 1 or (speeds and meaning[0] == "still"):
        return None
    return Clip(scene.objects[0], *meaning, speeds[0] if speeds else None, scene.background)


def is_held_out_clip(clip: Clip) -> bool:
    """Whether a clip belongs to the 1/16 of distinct clips that are never trained on; the same on every machine."""
    return is_held_out_text(clip_caption(clip))


def held_out_clips(count: int, seed: int = 0) -> list[Clip]:
    """Sample ``count`` distinct held-out clips, the same ones for the same arguments."""
    rng = random.Random(seed)
    chosen: dict[Clip, None] = {}
    while len(chosen) < count:
        if is_held_out_clip(clip := sample_clip(rng)):
            chosen[clip] = None
    return list(chosen)
