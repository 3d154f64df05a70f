from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.evaluation.scenes.grammar import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    caption,
    held_out_scenes,
    is_held_out,
    normal_form,
    sample_scene,
)
from tests.evaluation.scenes.truth import describes
from training.captions import SYNONYMS, VOCABULARY, content_words, paraphrase, parse, sample_training_scene

seeds = st.integers(0, 2**32)
scenes = st.builds(lambda seed, n: sample_scene(random.Random(seed), n), seeds, st.sampled_from([1, 2, None]))
EXAMPLE = Scene(
    (SceneObject("circle", "red", "striped", "large"), SceneObject("star", "blue", "plain", "small")),
    "left of",
    "grass",
)


def test_canonical_caption_reads_as_written() -> None:
    assert caption(EXAMPLE) == "a large red striped circle left of a small blue star on grass"


@given(scenes)
def test_parse_inverts_the_canonical_caption(scene: Scene) -> None:
    assert parse(caption(scene)) == scene


@settings(max_examples=300)
@given(scenes, seeds)
def test_every_variant_is_parsed_and_true_and_within_the_vocabulary(scene: Scene, seed: int) -> None:
    text = paraphrase(scene, random.Random(seed))
    spoken = parse(text)
    assert spoken is not None
    assert describes(spoken, scene)
    assert set(text.split()) <= set(VOCABULARY)
    # What is parsed can be said again, in the canonical form, without loss.
    assert parse(caption(spoken)) == spoken


@given(scenes, seeds)
def test_parse_tolerates_case_commas_and_spaces(scene: Scene, seed: int) -> None:
    text = paraphrase(scene, random.Random(seed))
    assert parse("  " + text.upper().replace(" ", " , ") + ". ") == parse(text)


def test_variants_do_vary() -> None:
    rng = random.Random(0)
    variants = {paraphrase(EXAMPLE, rng) for _ in range(400)}
    assert len(variants) > 20
    parsed = [parse(text) for text in variants]
    assert any(scene is not None and scene.relation is None for scene in parsed)
    assert any(scene is not None and scene.relation == "right of" for scene in parsed)
    assert any(scene is not None and scene.background is None for scene in parsed)
    assert any(scene is not None and scene.objects[0].size is None for scene in parsed)


def test_unspoken_attributes_are_none_and_unspoken_texture_is_plain() -> None:
    assert parse("a circle") == Scene((SceneObject("circle", None, "plain", None),), None, None)


@pytest.mark.parametrize("synonym", sorted(SYNONYMS))
def test_synonyms_stand_for_words_of_the_vocabulary(synonym: str) -> None:
    assert synonym in VOCABULARY
    assert SYNONYMS[synonym] in VOCABULARY
    assert SYNONYMS[synonym] not in SYNONYMS
    assert content_words(synonym) == content_words(SYNONYMS[synonym])


def test_synonyms_are_parsed() -> None:
    found = parse("Big red DISC, to the left of a tiny spotted violet box on the beach")
    assert found == parse("a large red circle left of a small purple dotted square on sand")
    assert found is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "a red",
        "a red blue circle",
        "a red circle on",
        "a red circle on mars",
        "a red circle left a blue star",
        "a red circle and",
        "on grass",
        "a red circle left of a blue star above a green ring",
        "a red circle on grass on sand",
    ],
)
def test_parse_says_none_when_it_does_not_understand(text: str) -> None:
    assert parse(text) is None


@given(scenes)
def test_sampled_scenes_are_complete_and_their_objects_differ(scene: Scene) -> None:
    assert scene.background in BACKGROUNDS
    for item in scene.objects:
        assert item.shape in SHAPES and item.colour in COLOURS
        assert item.texture in TEXTURES and item.size in SIZES
    if len(scene.objects) == 2:
        assert scene.relation in RELATIONS
        assert scene.objects[0].shape != scene.objects[1].shape
        assert scene.objects[0].colour != scene.objects[1].colour
    else:
        assert scene.relation is None


def test_sample_scene_refuses_three_objects() -> None:
    with pytest.raises(ValueError, match="1 or 2"):
        sample_scene(random.Random(0), 3)


def test_vocabulary_is_sorted_small_and_lower_case() -> None:
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert len(VOCABULARY) < 100
    assert all(word == word.lower() and word.isalpha() for word in VOCABULARY)


def test_split_is_stable() -> None:
    # A change of these would move scenes between the split's sides, and spoil published figures.
    rng = random.Random(7)
    flags = [is_held_out(sample_scene(rng)) for _ in range(64)]
    assert [index for index, held in enumerate(flags) if held] == [13, 59]


def test_split_holds_out_about_a_sixteenth() -> None:
    rng = random.Random(1)
    for objects in (1, 2):
        share = sum(is_held_out(sample_scene(rng, objects)) for _ in range(8000)) / 8000
        assert abs(share - 1 / 16) < 0.012


@given(scenes)
def test_split_does_not_depend_on_the_order_of_the_objects(scene: Scene) -> None:
    if len(scene.objects) == 2 and scene.relation is not None:
        same = Scene(scene.objects[::-1], INVERSE[scene.relation], scene.background)
        assert normal_form(same) == normal_form(scene)
        assert is_held_out(same) == is_held_out(scene)
        unordered = replace(scene, relation=None)
        assert normal_form(unordered) == normal_form(replace(unordered, objects=scene.objects[::-1]))


def test_training_scenes_are_never_held_out() -> None:
    rng = random.Random(2)
    assert not any(is_held_out(sample_training_scene(rng)) for _ in range(1000))


@pytest.mark.parametrize("objects", [None, 1, 2])
def test_held_out_scenes_are_distinct_and_reproducible(objects: int | None) -> None:
    found = held_out_scenes(100, seed=3, objects=objects)
    assert found == held_out_scenes(100, seed=3, objects=objects)
    assert found != held_out_scenes(100, seed=4, objects=objects)
    assert len({normal_form(scene) for scene in found}) == 100
    assert all(is_held_out(scene) for scene in found)
    counts = {len(scene.objects) for scene in found}
    assert counts == ({1, 2} if objects is None else {objects})


def test_held_out_scenes_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="held out"):
        held_out_scenes(5000, objects=1)


def test_describes_compares_by_place() -> None:
    swapped = Scene(EXAMPLE.objects[::-1], "right of", "grass")
    assert describes(swapped, EXAMPLE)
    assert describes(replace(swapped, relation=None), EXAMPLE)
    assert not describes(replace(swapped, relation="left of"), EXAMPLE)
    assert not describes(replace(EXAMPLE, background="sand"), EXAMPLE)
    assert not describes(replace(EXAMPLE, objects=EXAMPLE.objects[:1]), EXAMPLE)
