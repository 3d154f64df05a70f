"""HART through the pipeline: from its published folders and a tiny Qwen2 to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar import Pipeline, StepVAR
from stepvar.core.guidance import hold_last, linear_hold, relative_scales
from stepvar.core.plan import Step
from stepvar.errors import UsageError
from stepvar.methods import FastVAR
from stepvar.text import CachedEncoder, ContextFeatures, Qwen2Encoder
from tests.checkpoint_writer import write_hart
from tests.helpers import SQUARE, TINY_HART, generate_hart, make_context, make_hart, make_settings
from tests.text.test_qwen2 import save_qwen2

PROMPT = "a red circle"
SMOOTH = hold_last(relative_scales(5))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("hart")
    write_hart(folder / "release")
    save_qwen2(folder / "qwen2")
    return Pipeline.from_pretrained(folder / "release", text_encoder=folder / "qwen2")


def pixels(pipe: Pipeline, *args: Any, **settings: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(*args, output_type="pt", seed=3, progress=False, **settings).images
    return images


def test_prompt_to_image(pipe: Pipeline) -> None:
    output = pipe([PROMPT, "a blue square"], seed=1, progress=False)
    assert [image.size for image in output.images] == [(16, 16)] * 2 and output.captions == [PROMPT, "a blue square"]
    assert [scale.tokens for scale in output.report.scales] == [grid.size for grid in SQUARE]
    assert output.report.model == "hart-0.7b"


def test_defaults_are_the_authors(pipe: Pipeline) -> None:
    steps: list[Step] = []
    pipe(PROMPT, seed=0, progress=False, callback_on_scale_end=lambda step, _: steps.append(step))
    assert tuple(step.guidance for step in steps) == linear_hold(5.5, 5)
    assert [step.top_k for step in steps] == [600] * 5 and steps[0].settings.smooth == SMOOTH
    smooth, hard = pixels(pipe, PROMPT), pixels(pipe, PROMPT, more_smooth=False)
    assert not torch.equal(smooth, hard)


def test_features_in_place_of_prompts(pipe: Pipeline) -> None:
    assert pipe.text_encoder is not None
    text = pipe.text_encoder.encode([PROMPT])
    assert torch.equal(pixels(pipe, prompt_embeds=text), pixels(pipe, PROMPT))
    bare = [pixels(pipe, prompt_embeds=given) for given in (text.features, text.features[0], [text.features[0]])]
    assert torch.equal(bare[0], bare[1]) and torch.equal(bare[0], bare[2])
    assert not torch.equal(bare[0], pixels(pipe, PROMPT))  # without a mask padding counts as words
    output = pipe(prompt_embeds=make_context((3, 5)), num_images_per_prompt=2, seed=0, progress=False)
    assert len(output.images) == 4 and output.captions[0] == "(text features)"


def test_the_pipeline_generates_what_the_loop_generates(pipe: Pipeline) -> None:
    text, ramp = make_context((3,)), linear_hold(5.5, 5)
    generated = generate_hart(make_hart(), make_settings(SQUARE, ramp, smooth=SMOOTH), text=text, first=3)
    expected = (make_hart().decode(generated.state) + 1) / 2
    torch.testing.assert_close(pixels(pipe, prompt_embeds=text, top_k=0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", ["stepvar:hart", "fastvar:hart", StepVAR(keep=0.5), FastVAR((0.5,), 1, 0, 0)], ids=str
)
def test_methods(pipe: Pipeline, method: Any) -> None:
    dense = pipe(PROMPT, seed=3, progress=False)
    fast = pipe(PROMPT, seed=3, progress=False, method=method)
    assert fast.report.kept < dense.report.kept
    assert torch.isfinite(pixels(pipe, PROMPT, method=method)).all()
    if method in ("stepvar:hart", "fastvar:hart"):
        assert [scale.kept for scale in fast.report.scales] == [1, 4, 16, 18, 16]


def test_one_branch(pipe: Pipeline) -> None:
    output = pipe(PROMPT, seed=0, guidance_scale=1.0, progress=False)
    assert [scale.branches for scale in output.report.scales] == [1] * 5


def test_tiles_and_offload(pipe: Pipeline) -> None:
    pipe.enable_text_encoder_offload("cpu")
    whole = pixels(pipe, PROMPT)
    assert whole.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "say what to generate"),
        ({"prompt": PROMPT, "class_labels": 3}, "class_labels: this model does not take it"),
        ({"prompt": PROMPT, "negative_prompt": "blue"}, "negative_prompt: this model does not take it"),
        ({"prompt": PROMPT, "prompt_embeds": torch.zeros(5, 12)}, "give one of them"),
        ({"prompt_embeds": torch.zeros(4, 12)}, "4 tokens and 12 channels: this model reads exactly 5"),
        ({"prompt_embeds": [PROMPT]}, "prompt_embeds: give ContextFeatures"),
        ({"prompt": "  "}, "is empty"),
        ({"prompt": PROMPT, "aspect_ratio": "3:2"}, "squares only"),
        ({"prompt": PROMPT, "top_k": (5, 5)}, "top_k: 2 values for 5 scales"),
    ],
    ids=str,
)
def test_what_cannot_be_generated(pipe: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipe(**settings)


def test_without_a_text_encoder(tmp_path: Path) -> None:
    write_hart(tmp_path / "release")
    bare = Pipeline.from_pretrained(tmp_path / "release", text_encoder=None)
    with pytest.raises(UsageError, match="made without a text encoder; give prompt_embeds"):
        bare(PROMPT)
    features = torch.zeros(1, TINY_HART.context_tokens, TINY_HART.context_channels)
    assert bare(prompt_embeds=ContextFeatures.of(features), seed=0, progress=False).images[0].size == (16, 16)


@pytest.mark.filterwarnings("error")
def test_a_quantised_pipeline_says_so(tmp_path: Path) -> None:
    write_hart(tmp_path / "release")
    save_qwen2(tmp_path / "qwen2")
    pipe = Pipeline.from_pretrained(
        tmp_path / "release", text_encoder=tmp_path / "qwen2", dtype=torch.bfloat16, quantization="int8"
    )
    assert "cpu bfloat16, quantised to int8, text encoder" in repr(pipe)
    assert isinstance(pipe.text_encoder, CachedEncoder) and isinstance(pipe.text_encoder.encoder, Qwen2Encoder)
    assert pipe.quantization == pipe.text_encoder.encoder.quantization == "int8"
    report = pipe(PROMPT, seed=1, progress=False).report
    assert report.to_dict()["quantization"] == "int8" and "bfloat16 int8" in str(report)
    with pytest.raises(UsageError, match="stored in int8 for"):
        pipe.to(dtype=torch.float32)
    text_encoder = Qwen2Encoder(tmp_path / "qwen2")
    Pipeline.from_pretrained(tmp_path / "release", text_encoder=text_encoder, quantization="int8")
    assert text_encoder.quantization is None  # an encoder of the caller's own is left as it is


def test_quantization_is_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="quantization='int4': must be one of fp8, int8"):
        Pipeline.from_pretrained("nowhere", quantization="int4")  # type: ignore[arg-type]
    monkeypatch.setattr("stepvar.pipeline.pretrained.device_of", lambda name, device: torch.device(device))
    with pytest.raises(UsageError, match="quantization='fp8': needs an NVIDIA GPU"):
        Pipeline.from_pretrained("nowhere", device="mps", quantization="fp8")
