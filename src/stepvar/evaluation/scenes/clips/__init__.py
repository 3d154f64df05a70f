"""Captioned clips of moving objects: the grammar of their captions, the renderer and the judge."""

from .grammar import Clip, clip_caption, held_out_clips, parse_clip, sample_clip
from .render import render_clips

__all__ = ["Clip", "clip_caption", "held_out_clips", "parse_clip", "render_clips", "sample_clip"]
