"""Prompts for the embedded models, each of which knows the words of its own captions only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Examples:
    """Prompts for one model.

    Attributes:
        textured: with a pattern, in which one sees what a method changes; ``stepvar demo`` takes the first.
        offered: short ones, which the web page offers.
    """

    textured: tuple[str, ...]
    offered: tuple[str, ...]


EXAMPLES: dict[str, Examples] = {
    "scenes": Examples(
        textured=(
            "a large red striped circle left of a small blue star on grass",
            "a large purple striped circle above a small yellow star on water",
            "a large orange striped square on brick",
        ),
        offered=(
            "a red striped circle left of a large blue star on grass",
            "a small yellow heart on sand",
            "a large green square on water",
        ),
    ),
    "scenes-video": Examples(
        textured=("a large red striped ball rolling right on grass",),
        offered=("a large red circle moving right on grass", "a small blue star moving left on sand"),
    ),
    "wardrobe": Examples(
        textured=("a brown printed shirt on a white ground", "a red jacket on a grey ground"),
        offered=("a red t-shirt on a white ground", "blue pants on a beige ground", "a black dress on a grey ground"),
    ),
}
"""By the name that a model gives itself, which copies in a folder keep."""
