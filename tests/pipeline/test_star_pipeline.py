"""STAR through the pipeline: from its published files and a tiny CLIP to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar import Pipeline
from stepvar.core.guidance import linear
from stepvar.core.plan import Step
from stepvar.errors import UsageError
from tests.checkpoint_writer import write_star_t2i
from tests.helpers import SQUARE
from tests.text.test_stable_diffusion import save_stable_diffusion

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("star")
    write_star_t2i(folder / "release")
    save_stable_diffusion(folder)
    return Pipeline.from_pretrained(folder / "release", text_encoder=folder / "text_encoder")


def pixels(pipe: Pipeline, *args: Any, **settings: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(*args, output_type="pt", seed=3, progress=False, **settings).images
    return images


def test_prompt_to_image(pipe: Pipeline) -> None:
    output = pipe([PROMPT, "a blue square"], seed=1, progress=False)
    assert [image.size for image in output.images] == [(16, 16)] * 2 and output.captions == [PROMPT, "a blue square"]
    assert [scale.tokens for scale in output.report.scales] == [grid.size for grid in SQUARE]


def test_defaults_are_the_authors(pipe: Pipeline) -> None:
    steps: list[Step] = []
    pipe(PROMPT, seed=0, progress=False, callback_on_scale_end=lambda step, _: steps.append(step))
    assert tuple(step.guidance for step in steps) == linear(5.0, 5)
    settings = steps[0].settings
    assert (settings.full_guidance, settings.top_p, settings.top_k, settings.smooth) == (5.0, 0.8, 0, ())
    per_scale = pixels(pipe, PROMPT, guidance_scale=linear(5.0, 5))
    assert torch.equal(per_scale, pixels(pipe, PROMPT))  # only the last scale is sampled in steps


def test_guidance_leads_away_from_the_empty_prompt(pipe: Pipeline) -> None:
    assert pipe.text_encoder is not None
    dense = pixels(pipe, PROMPT)
    assert torch.equal(pixels(pipe, PROMPT, negative_prompt=""), dense)
    assert not torch.equal(pixels(pipe, PROMPT, negative_prompt="a blue square"), dense)
    text = pipe.text_encoder.encode([PROMPT, ""]).rows()
    embedded = pixels(pipe, prompt_embeds=text[0], negative_prompt_embeds=text[1])
    assert torch.equal(embedded, dense)
    assert torch.equal(pixels(pipe, prompt_embeds=text[0]), dense)  # the encoder is there, and encodes the empty prompt
    assert pixels(pipe, [PROMPT] * 2, negative_prompt="sand").shape == (2, 3, 16, 16)


def test_a_stream_of_random_numbers_repeats(pipe: Pipeline) -> None:
    first, again = (
        pipe(PROMPT, generator=torch.Generator().manual_seed(5), output_type="pt", progress=False).images for _ in "ab"
    )
    assert torch.equal(first, again) and not torch.equal(first, pixels(pipe, PROMPT))


def test_one_branch(pipe: Pipeline) -> None:
    output = pipe(PROMPT, seed=0, guidance_scale=1.0, progress=False)
    assert [scale.branches for scale in output.report.scales] == [1] * 5


@pytest.mark.parametrize("method", ["stepvar", "stepvar+drop-guidance", "skip-last"])
def test_methods(pipe: Pipeline, method: str) -> None:
    dense, fast = (pipe(PROMPT, seed=3, progress=False, method=one) for one in ("dense", method))
    assert sum(scale.kept * scale.branches for scale in fast.report.scales) < sum(
        scale.kept * scale.branches for scale in dense.report.scales
    )


def test_offload_and_quantisation_give_images(pipe: Pipeline, tmp_path: Path) -> None:
    whole = pixels(pipe, PROMPT)
    pipe.enable_sequential_cpu_offload("cpu")
    assert torch.equal(pixels(pipe, PROMPT), whole)
    pipe.disable_cpu_offload()
    write_star_t2i(tmp_path / "release")
    small = Pipeline.from_pretrained(tmp_path / "release", text_encoder=None, quantization="int8")
    embeds = {"prompt_embeds": torch.randn(4, 24), "negative_prompt_embeds": torch.randn(2, 24)}
    assert torch.isfinite(pixels(small, **embeds)).all()
    stored = {name for name, weight in small.model.named_parameters() if weight.dtype == torch.int8}
    assert "transformer.feat_extract_blocks.0.ffn.fc1.weight" in stored
    assert "transformer.blocks.0.cross_attn.mat_kv.weight" in stored
    assert not any("head" in name or "encoder_proj" in name for name in stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "say what to generate"),
        ({"prompt": PROMPT, "class_labels": 3}, "class_labels: this model does not take it"),
        ({"prompt": PROMPT, "aspect_ratio": "3:2"}, "squares only"),
        ({"prompt": [PROMPT] * 3, "negative_prompt": ["sand"] * 2}, "2 given for 3 prompts"),
        ({"prompt_embeds": torch.zeros(4, 12)}, "this model needs 24"),
        ({"prompt": PROMPT, "seconds": 1}, "this model does not take it|generates images"),
    ],
    ids=str,
)
def test_what_cannot_be_generated(pipe: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipe(**settings)


def test_without_a_text_encoder_guidance_needs_features_of_the_empty_prompt(tmp_path: Path) -> None:
    write_star_t2i(tmp_path / "release")
    bare = Pipeline.from_pretrained(tmp_path / "release", text_encoder=None)
    with pytest.raises(UsageError, match="give negative_prompt_embeds"):
        bare(prompt_embeds=torch.randn(4, 24))
    assert pixels(bare, prompt_embeds=torch.randn(4, 24), guidance_scale=1.0).shape == (1, 3, 16, 16)
