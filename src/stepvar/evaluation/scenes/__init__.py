"""Captioned rendered scenes: the grammar of their captions, the renderer and the judge."""

from .grammar import Scene, SceneObject, caption, held_out_scenes, parse, sample_scene
from .judge import Judge
from .render import render

__all__ = [
    "Judge",
    "Scene",
    "SceneObject",
    "caption",
    "held_out_scenes",
    "parse",
    "render",
    "sample_scene",
]
