"""The captions that the embedded video model is trained on: paraphrases, their words, and a parser that reads them.

The canonical captions and the held-out split are those of :mod:`stepvar.evaluation.scenes.clips.grammar`.
"""

from __future__ import annotations

import random

from stepvar.evaluation.scenes.clips.grammar import MOTION_PHRASES, SPEEDS, Clip, is_held_out_clip, sample_clip
from training.captions import (
    SYNONYMS,
    VOCABULARY,
    content_words,
    paraphrase_background,
    paraphrase_object,
    parse,
)

_OTHER_PHRASES: dict[tuple[str, bool], str] = {
    ("left", False): "moving to the left",
    ("right", False): "moving to the right",
    ("up", False): "rising",
    ("down", False): "falling",
    ("still", False): "resting",
    ("left", True): "rolling to the left",
    ("right", True): "rolling to the right",
}


def motion_phrases(motion: str, rolling: bool) -> tuple[str, ...]:
    """All phrases of a motion, the canonical one first."""
    canonical, other = MOTION_PHRASES[motion, rolling], _OTHER_PHRASES.get((motion, rolling))
    return (canonical,) if other is None else (canonical, other)


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
        | {word for motion in MOTION_PHRASES for word in " ".join(motion_phrases(*motion)).split()}
    )
)
"""Every word that captions of clips use, and the synonyms; sorted."""


def sample_training_clip(rng: random.Random) -> Clip:
    """Sample like :func:`sample_clip`, but never a held-out clip."""
    while is_held_out_clip(clip := sample_clip(rng)):
        pass
    return clip


def paraphrase_clip(clip: Clip, rng: random.Random) -> str:
    """A true description of a clip in lower-case words of :data:`CLIP_VOCABULARY`.

    It may leave out the size, a colour, the motion, the speed or the background.
    """
    parts = [paraphrase_object(clip.item, rng)]
    speed = None if rng.random() < 0.35 else clip.speed
    motion = None if rng.random() < 0.03 else clip.motion
    if motion is not None:
        parts.append(_motion_phrase(motion, clip.rolling, speed, rng))
    background = paraphrase_background(clip.background, rng)
    return " ".join([*parts, background] if background else parts)


def _motion_phrase(motion: str, rolling: bool, speed: str | None, rng: random.Random) -> str:
    phrases = motion_phrases(motion, rolling)
    phrase = phrases[0] if rng.random() < 0.5 else rng.choice(phrases)
    if speed is None:
        return phrase
    verb, *direction = phrase.split()
    if direction and rng.random() < 0.4:
        return " ".join([verb, speed, *direction])
    return f"{phrase} {speed}"


_MEANINGS: dict[tuple[str, ...], tuple[str, bool]] = {
    tuple(content_words(phrase)): meaning for meaning in MOTION_PHRASES for phrase in motion_phrases(*meaning)
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
