"""Clips of one object that moves before a background, the captions that describe them, and the held-out split.

An extension of the still grammar: objects and backgrounds are those of :mod:`stepvar.evaluation.scenes.grammar`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..grammar import (
    SYNONYMS,
    VOCABULARY,
    Scene,
    SceneObject,
    background_phrase,
    describes,
    is_held_out_text,
    noun_phrase,
    parse,
    sample_scene,
)

MOTIONS: tuple[str, ...] = ("left", "right", "up", "down", "growing", "shrinking", "still")
"""What an object does in the course of a clip."""

SPEEDS: tuple[str, ...] = ("slowly", "quickly")
OPPOSITE: dict[str, str] = {
    "left": "right", "right": "left", "up": "down", "down": "up", "growing": "shrinking", "shrinking": "growing",
}  # fmt: skip
"""The motion that the same clip shows when it is played backwards."""

_ROLLED = ("left", "right")
# The first phrase of each motion is its canonical one.
_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left"),
    "right": ("moving right", "moving to the right"),
    "up": ("moving up", "rising"),
    "down": ("moving down", "falling"),
    "growing": ("growing",),
    "shrinking": ("shrinking",),
    "still": ("standing still", "resting"),
}
_ROLLING: dict[str, tuple[str, ...]] = {side: (f"rolling {side}", f"rolling to the {side}") for side in _ROLLED}

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

    @property
    def scene(self) -> Scene:
        """What any one frame shows."""
        return Scene((self.item,), None, self.background)


def sample_clip(rng: random.Random) -> Clip:
    """Draw a fully specified clip: motions evenly, half of those to a side rolling."""
    scene = sample_scene(rng, 1)
    motion = rng.choice(MOTIONS)
    rolling = motion in _ROLLED and rng.random() < 0.5
    speed = None if motion == "still" else rng.choice(SPEEDS)
    return Clip(scene.objects[0], motion, rolling, speed, scene.background)


def sample_training_clip(rng: random.Random) -> Clip:
    """Draw like :func:`sample_clip`, but never a held-out clip."""
    while True:
        clip = sample_clip(rng)
        if not is_held_out_clip(clip):
            return clip


def clip_caption(clip: Clip, rng: random.Random | None = None) -> str:
    """Describe a clip in lower-case words of :data:`CLIP_VOCABULARY`.

    Without ``rng``: the one canonical caption, which speaks every attribute that is not ``None``. With ``rng``: a true
    paraphrase, which may leave out the size, a colour, the motion, the speed or the background.
    """
    item, motion, speed = clip.item, clip.motion, clip.speed
    plain_spoken = False
    if rng is not None:
        # The texture is never left out: its absence means "plain".
        item = replace(item, size=None if rng.random() < 0.25 else item.size)
        item = replace(item, colour=None if rng.random() < 0.04 else item.colour)
        plain_spoken = rng.random() < 0.1
        speed = None if rng.random() < 0.35 else speed
        motion = None if rng.random() < 0.03 else motion
    parts = [noun_phrase(item, plain_spoken)]
    if motion is not None:
        parts.append(_motion_phrase(motion, clip.rolling, speed, rng))
    background = background_phrase(clip.background, rng)
    return " ".join([*parts, background] if background else parts)


def _motion_phrase(motion: str, rolling: bool, speed: str | None, rng: random.Random | None) -> str:
    phrases = (_ROLLING if rolling else _PHRASES)[motion]
    phrase = phrases[0] if rng is None or rng.random() < 0.5 else rng.choice(phrases)
    if speed is None:
        return phrase
    verb, *direction = phrase.split()
    if rng is not None and direction and rng.random() < 0.4:
        return " ".join([verb, speed, *direction])
    return f"{phrase} {speed}"


_IGNORED = frozenset({"a", "the", "to", "is"})


def _words(text: str) -> list[str]:
    found = (CLIP_SYNONYMS.get(word, word) for word in re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in found if word not in _IGNORED]


_MEANINGS: dict[tuple[str, ...], tuple[str, bool]] = {
    tuple(word for word in phrase.split() if word not in _IGNORED): (motion, rolling)
    for rolling, table in ((False, _PHRASES), (True, _ROLLING))
    for motion, phrases in table.items()
    for phrase in phrases
}
_MEANINGS |= {("still",): ("still", False), ("falling", "down"): ("down", False), ("rising", "up"): ("up", False)}
_MOTION_WORDS = frozenset(word for meaning in _MEANINGS for word in meaning) | set(SPEEDS)


def parse_clip(text: str) -> Clip | None:
    """Read a caption; ``None`` when it is not understood.

    Case, commas, articles and extra spaces do not matter, and synonyms are accepted. What the caption does not speak
    of is ``None``, except the texture (no word means "plain") and rolling (no word means that it does not).
    """
    spoken = _words(text)
    places = [index for index, word in enumerate(spoken) if word in _MOTION_WORDS]
    start, end = (places[0], places[-1] + 1) if places else (0, 0)
    if len(places) != end - start:
        return None
    scene = parse(" ".join([*spoken[:start], *spoken[end:]]))
    if scene is None or len(scene.objects) != 1:
        return None
    # The object is named in front of what it does.
    if places and parse(" ".join(spoken[:start])) is None:
        return None
    speeds = [word for word in spoken[start:end] if word in SPEEDS]
    motion, rolling = None, False
    if places:
        meaning = _MEANINGS.get(tuple(word for word in spoken[start:end] if word not in SPEEDS))
        if meaning is None or len(speeds) > 1 or (speeds and meaning[0] == "still"):
            return None
        motion, rolling = meaning
    return Clip(scene.objects[0], motion, rolling, speeds[0] if speeds else None, scene.background)


def clip_describes(spoken: Clip, clip: Clip) -> bool:
    """Whether everything that ``spoken`` says is true of the fully specified ``clip``."""
    if spoken.motion is not None and (spoken.motion, spoken.rolling) != (clip.motion, clip.rolling):
        return False
    return spoken.speed in (None, clip.speed) and describes(spoken.scene, clip.scene)


def is_held_out_clip(clip: Clip) -> bool:
    """Whether a clip belongs to the 1/16 of distinct clips that are never trained on; the same on every machine."""
    return is_held_out_text(clip_caption(clip))


def held_out_clips(count: int, seed: int = 0) -> list[Clip]:
    """Draw ``count`` distinct held-out clips, the same ones for the same arguments."""
    rng = random.Random(seed)
    chosen: dict[Clip, None] = {}
    while len(chosen) < count:
        clip = sample_clip(rng)
        if is_held_out_clip(clip):
            chosen[clip] = None
    return list(chosen)


def _vocabulary() -> Iterable[str]:
    yield from VOCABULARY
    yield from SPEEDS
    for table in (_PHRASES, _ROLLING):
        for phrases in table.values():
            for phrase in phrases:
                yield from phrase.split()
    yield from CLIP_SYNONYMS


CLIP_VOCABULARY: tuple[str, ...] = tuple(sorted(set(_vocabulary())))
"""Every word that captions of clips use, and the synonyms; sorted."""
