from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.evaluation.scenes.clips.grammar import (
    MOTIONS,
    SPEEDS,
    Clip,
    clip_caption,
    held_out_clips,
    is_held_out_clip,
    sample_clip,
)
from stepvar.evaluation.scenes.grammar import SceneObject
from tests.evaluation.scenes.truth import clip_describes
from training.video.captions import CLIP_SYNONYMS, CLIP_VOCABULARY, paraphrase_clip, parse_clip, sample_training_clip

seeds = st.integers(0, 2**32)
clips = st.builds(lambda seed: sample_clip(random.Random(seed)), seeds)


def test_the_caption_of_the_documentation_is_understood() -> None:
    clip = parse_clip("a red striped ball rolling right on grass")
    assert clip == Clip(SceneObject("circle", "red", "striped", None), "right", True, None, "grass")


@given(clips)
def test_parse_inverts_the_canonical_caption(clip: Clip) -> None:
    assert parse_clip(clip_caption(clip)) == clip


@settings(max_examples=300)
@given(clips, seeds)
def test_every_variant_is_parsed_and_true_and_within_the_vocabulary(clip: Clip, seed: int) -> None:
    text = paraphrase_clip(clip, random.Random(seed))
    spoken = parse_clip(text)
    assert spoken is not None
    assert clip_describes(spoken, clip)
    assert set(text.split()) <= set(CLIP_VOCABULARY)
    assert parse_clip(clip_caption(spoken)) == spoken


def test_variants_do_vary() -> None:
    clip = Clip(SceneObject("ring", "blue", "dotted", "small"), "down", False, "quickly", "night")
    texts = {paraphrase_clip(clip, random.Random(seed)) for seed in range(400)}
    assert any("falling" in text for text in texts) and any("moving quickly down" in text for text in texts)
    assert any("small" not in text for text in texts) and any("quickly" not in text for text in texts)
    assert any(spoken is not None and spoken.motion is None for spoken in map(parse_clip, texts))


@pytest.mark.parametrize(
    ("text", "motion", "rolling", "speed"),
    [
        ("a red ball flying upwards in the sky", "up", False, None),
        ("A big BLUE box, sliding slowly to the left, on the beach!", "left", False, "slowly"),
        ("a star falling fast at night", "down", False, "quickly"),
        ("a star falling down at night", "down", False, None),
        ("a pink heart growing rapidly on sand", "growing", False, "quickly"),
        ("a ring resting on water", "still", False, None),
        ("a donut rolling leftwards on a wood floor", "left", True, None),
        ("a red circle on grass, moving left", "left", False, None),
        ("a red circle on grass", None, False, None),
    ],
)
def test_other_words_are_understood(text: str, motion: str | None, rolling: bool, speed: str | None) -> None:
    clip = parse_clip(text)
    assert clip is not None
    assert (clip.motion, clip.rolling, clip.speed) == (motion, rolling, speed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "moving left",
        "a red circle left of a blue star",
        "a red circle moving",
        "a red circle rolling up",
        "a red circle standing still quickly",
        "a red circle moving slowly left quickly",
        "on grass a red circle moving left",
        "a red circle dancing on grass",
    ],
)
def test_what_is_not_understood_is_none(text: str) -> None:
    assert parse_clip(text) is None


def test_synonyms_stand_for_words_that_captions_use() -> None:
    assert set(CLIP_SYNONYMS.values()) <= set(CLIP_VOCABULARY)
    assert not set(CLIP_SYNONYMS) & {*MOTIONS, *SPEEDS}


def test_a_sixteenth_is_held_out_and_never_trained_on() -> None:
    rng = random.Random(0)
    share = sum(is_held_out_clip(sample_clip(rng)) for _ in range(4000)) / 4000
    assert 0.045 < share < 0.08
    assert not any(is_held_out_clip(sample_training_clip(rng)) for _ in range(500))
    held_out = held_out_clips(200, seed=3)
    assert held_out == held_out_clips(200, seed=3)
    assert len(set(held_out)) == 200 and all(map(is_held_out_clip, held_out))


def test_a_clip_says_something_false_of_another_motion() -> None:
    clip = parse_clip("a large red ball rolling right quickly on grass")
    assert clip is not None
    for text in ("a ball moving right", "a ball rolling left", "a ball rolling right slowly", "a ball resting"):
        spoken = parse_clip(text)
        assert spoken is not None and not clip_describes(spoken, clip)
