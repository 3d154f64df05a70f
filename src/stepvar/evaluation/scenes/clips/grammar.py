"""Clips of one object that moves before a background, the captions that describe them, and the held-out split.

An extension of the still grammar: objects and backgrounds are those of :mod:`stepvar.evaluation.scenes.grammar`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..grammar import SceneObject, background_phrase, is_held_out_text, noun_phrase, sample_scene

MOTIONS: tuple[str, ...] = ("left", "right", "up", "down", "growing", "shrinking", "still")
"""What an object does in the course of a clip."""

SPEEDS: tuple[str, ...] = ("slowly", "quickly")

MOTION_PHRASES: dict[tuple[str, bool], str] = {
    **{(side, False): f"moving {side}" for side in ("left", "right", "up", "down")},
    **{(side, True): f"rolling {side}" for side in ("left", "right")},
    ("growing", False): "growing",
    ("shrinking", False): "shrinking",
    ("still", False): "standing still",
}
"""How captions speak of a motion without and with rolling."""


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
    rolling = (motion, True) in MOTION_PHRASES and rng.random() < 0.5
    speed = None if motion == "still" else rng.choice(SPEEDS)
    return Clip(scene.objects[0], motion, rolling, speed, scene.background)


def clip_caption(clip: Clip) -> str:
    """The canonical caption of a clip, in lower case: it speaks every attribute that is not ``None``."""
    motion = None if clip.motion is None else MOTION_PHRASES[clip.motion, clip.rolling]
    background = None if clip.background is None else background_phrase(clip.background)
    said = (noun_phrase(clip.item), motion, None if motion is None else clip.speed, background)
    return " ".join(part for part in said if part is not None)


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
