"""From a prompt to an image of a Switti model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar import Pipeline
from stepvar.checkpoints import save_model
from stepvar.core.guidance import linear_window
from stepvar.core.plan import Step
from stepvar.errors import UsageError
from stepvar.text import PooledFeatures
from tests.helpers import TINY_SWITTI, generate_switti, make_pooled, make_pooled_condition, make_settings, make_switti
from tests.text.test_clip import save_towers

PROMPT = "a red circle on sand"
DEFAULTS = {
    "guidance_scale": 7.0,
    "temperature": (1.0,) * 11 + (0.1,) * 3,
    "top_k": 400,
    "top_p": 0.95,
    "more_smooth": True,
}
"""Those of a released model with more scales."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switti")
    save_model(folder / "model", "tiny-switti", make_switti(), None, None, DEFAULTS, dtype=None)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder / "model", text_encoder=save_towers(folder))


def pixels(pipe: Pipeline, *args: Any, **settings: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(*args, output_type="pt", seed=3, progress=False, **settings).images
    return images


def test_prompt_to_image(pipe: Pipeline) -> None:
    output = pipe([PROMPT, "a blue square"], seed=1, progress=False)
    assert [image.size for image in output.images] == [(16, 16)] * 2 and output.captions == [PROMPT, "a blue square"]
    assert not torch.equal(pixels(pipe, PROMPT), pixels(pipe, "a blue square"))


def test_defaults_are_the_authors(pipe: Pipeline) -> None:
    steps: list[Step] = []
    pipe(PROMPT, seed=0, progress=False, callback_on_scale_end=lambda step, _: steps.append(step))
    assert tuple(step.guidance for step in steps) == linear_window(7.0, 5)
    assert [step.temperature for step in steps] == [1.0, 1.0, 0.1, 0.1, 0.1]  # the last ones of a longer schedule
    assert [step.relative_scale for step in steps] == [None, None, 0.5, 0.75, None]
    assert [step.branches for step in steps] == [1, 2, 2, 2, 1] and not steps[0].settings.smooth_filtered


def test_the_negative_prompt_is_the_empty_text(pipe: Pipeline) -> None:
    plain = pixels(pipe, PROMPT)
    assert torch.equal(plain, pixels(pipe, PROMPT, negative_prompt=""))
    assert not torch.equal(plain, pixels(pipe, PROMPT, negative_prompt="a blue square"))
    assert len(pixels(pipe, [PROMPT, PROMPT], negative_prompt="a blue square")) == 2


def test_features_in_place_of_prompts(pipe: Pipeline) -> None:
    assert pipe.text_encoder is not None
    text = pipe.text_encoder.encode([PROMPT])
    assert torch.equal(pixels(pipe, prompt_embeds=text), pixels(pipe, PROMPT))
    bare = PooledFeatures.of(text.text.rows()[0], text.pooled[0])
    assert torch.equal(pixels(pipe, prompt_embeds=bare), pixels(pipe, PROMPT))


def test_the_pipeline_generates_what_the_loop_generates(folder: Path) -> None:
    bare = Pipeline.from_pretrained(folder / "model", text_encoder=None)
    settings = make_settings(TINY_SWITTI.schedule, linear_window(4.0, 5))
    generated = generate_switti(make_switti(), settings, condition=make_pooled_condition(first=3), first=3)
    expected = (make_switti().decode(generated.state) + 1) / 2
    found = pixels(
        bare,
        prompt_embeds=make_pooled(first=3),
        negative_prompt_embeds=make_pooled((2,), -1),
        guidance_scale=4.0,
        temperature=1.0,
        top_k=0,
        top_p=0.0,
        more_smooth=False,
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["stepvar", "fastvar:hart", "sparsevar", "skip-last"])
def test_methods(pipe: Pipeline, method: str) -> None:
    assert torch.isfinite(pixels(pipe, PROMPT, method=method)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "say what to generate"),
        ({"prompt": PROMPT, "class_labels": 3}, "class_labels: this model does not take it"),
        ({"prompt": PROMPT, "seconds": 3}, "seconds"),
        ({"prompt_embeds": torch.zeros(5, 24)}, r"prompt_embeds: give PooledFeatures\.of"),
        ({"prompt_embeds": PooledFeatures.of(torch.zeros(5, 20), torch.zeros(16))}, "20 channels: this model needs 24"),
        ({"prompt_embeds": PooledFeatures.of(torch.zeros(5, 24), torch.zeros(8))}, r"must be \(1, 16\)"),
        ({"prompt_embeds": PooledFeatures.of(torch.zeros(78, 24), torch.zeros(16))}, "78 tokens: .* reads at most 77"),
        ({"prompt": [PROMPT] * 3, "negative_prompt": ["a", "b"]}, "2 given for 3 prompts"),
        ({"prompt": PROMPT, "aspect_ratio": "3:2"}, "squares only"),
    ],
    ids=str,
)
def test_what_cannot_be_generated(pipe: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipe(**settings)


def test_features_alone_need_those_of_the_empty_text_for_guidance(folder: Path) -> None:
    bare = Pipeline.from_pretrained(folder / "model", text_encoder=None)
    with pytest.raises(UsageError, match="guidance needs features of the empty text"):
        bare(prompt_embeds=make_pooled(), progress=False)
    assert len(bare(prompt_embeds=make_pooled(), guidance_scale=1.0, progress=False).images) == 1
