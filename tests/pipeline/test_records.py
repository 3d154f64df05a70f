"""What the texts in a file say of the image in it."""

from __future__ import annotations

import json

import pytest

from stepvar.methods import make_method
from stepvar.pipeline.records import describe


@pytest.mark.parametrize(
    "negative, said",
    [
        ("red", ["red", "red", "red", "red"]),
        (["red"], ["red", "red", "red", "red"]),
        (["red", "blue"], ["red", "red", "blue", "blue"]),
    ],
)
def test_an_image_names_its_own_negative_prompt(negative: str | list[str], said: list[str]) -> None:
    """Two images of each of two prompts."""
    given = {"prompt": ["a", "b"], "num_images_per_prompt": 2, "negative_prompt": negative}
    origin = {"name": "scenes", "device": "cpu", "dtype": "float32", "quantization": None}
    found = describe("scenes", origin, given, make_method("dense"), [1, 2, 3, 4], ["a", "a", "b", "b"])
    assert [texts["negative_prompt"] for texts in found] == said
    assert all(json.loads(texts["repeat"])["call"]["negative_prompt"] == negative for texts in found)
