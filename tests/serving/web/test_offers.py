"""What the page offers for a model."""

from __future__ import annotations

from typing import Any

import pytest

from stepvar.checkpoints import EMBEDDED, LoadedModel
from stepvar.checkpoints.examples import EXAMPLES
from stepvar.errors import UsageError
from stepvar.methods import all_methods
from stepvar.models.var import VAR
from stepvar.pipeline import Pipeline
from stepvar.serving.web.offers import Offer
from stepvar.text.words import UnknownWordWarning


def test_methods_come_from_the_registry_with_what_they_do(pipe: Pipeline) -> None:
    offer = Offer.of(pipe)
    assert {one.name for one in offer.methods} <= set(all_methods())
    assert all(one.summary for one in offer.methods)


@pytest.mark.slow
def test_every_method_that_is_offered_runs(pipe: Pipeline) -> None:
    for one in Offer.of(pipe).methods:
        assert pipe("a red circle", seed=1, method=one.name, progress=False).images, one.name


def test_budgets_are_those_that_a_method_has(pipe: Pipeline) -> None:
    offer = Offer.of(pipe)
    assert offer.method("stepvar").budgets == ("keep", "speedup")
    assert offer.method("fastvar").budgets == ("speedup",)
    assert offer.method("dense").budgets == ()
    with pytest.raises(UsageError, match="no-such"):
        offer.method("no-such")


def test_every_shape_can_be_generated_and_the_own_one_is_first(pipe: Pipeline) -> None:
    shapes = Offer.of(pipe).shapes
    assert shapes[0][0].startswith("1:1") and len(shapes) > 5
    for label, ratio in shapes:
        grid = pipe.schedule(aspect_ratio=ratio)[-1]
        stride = pipe.model.config.stride
        assert f"({grid.w * stride}×{grid.h * stride})" in label


def test_a_model_of_classes_takes_no_negative_prompt_and_has_one_shape(tiny_var: VAR) -> None:
    offer = Offer.of(Pipeline(LoadedModel("tiny-var", "var", tiny_var, None, {}), None))
    assert offer.argument == "class_labels" and not offer.negative and len(offer.shapes) == 1


@pytest.mark.parametrize("name", EMBEDDED)
def test_examples_have_only_words_that_the_model_knows(name: str, recwarn: pytest.WarningsRecorder) -> None:
    pipe = Pipeline.from_pretrained(name)
    offer, examples = Offer.of(pipe, pipe.family.video), EXAMPLES[name]
    assert offer.negative and offer.examples == examples.offered
    encoder: Any = pipe.text_encoder
    encoder.encode(examples.textured + examples.offered)
    assert not [one for one in recwarn if one.category is UnknownWordWarning]
