"""The pipeline as a user calls it, on tiny models of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepvar import Pipeline, StepVAR
from stepvar.checkpoints import save_model
from stepvar.errors import UsageError
from stepvar.models.infinity import Infinity
from stepvar.models.var import VAR
from stepvar.text import ContextFeatures, TextFeatures, WordEncoder
from tests.helpers import TINY

TEXT: dict[str, Any] = {
    "vocabulary": ["a", "circle", "green", "on", "red", "sand", "star"],
    "synonyms": {"disc": "circle"},
    "width": TINY.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
PROMPTS = ["a red circle", "a green star on sand"]


@pytest.fixture(scope="module")
def text_pipe(tiny_model: Infinity, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    defaults = {"guidance_scale": 2.0, "temperature": 0.7}
    save_model(folder, "tiny", tiny_model, WordEncoder(**TEXT), TEXT, defaults, torch.float32)
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def class_pipe(tiny_var: VAR, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("classes")
    save_model(folder, "tiny-var", tiny_var, None, None, {"guidance_scale": 1.5}, torch.float32)
    return Pipeline.from_pretrained(folder)


def pixels(pipe: Pipeline, *arguments: Any, **settings: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(*arguments, output_type="pt", **settings).images
    return images


def test_latents_are_decoded_later_to_the_same_image(text_pipe: Pipeline, class_pipe: Pipeline, tmp_path: Path) -> None:
    whole = text_pipe(PROMPTS, seed=1)
    out = text_pipe(PROMPTS, seed=1, output_type="latent")
    assert out.latents is not None and len(out.latents) == 2 and not len(out.images) and not len(out.videos)
    assert out.report.tokens == whole.report.tokens and "latents (2)" in repr(out)
    later = text_pipe.decode(out.latents)
    assert [one.tobytes() for one in later] == [one.tobytes() for one in whole.images]
    assert later[1].metadata == whole.images[1].metadata
    assert not {"cache", "condition"} & vars(out.latents.state).keys()
    with pytest.raises(UsageError, match=r"pipe\.decode"):
        out.save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="latents of tiny: cannot be decoded by tiny-var"):
        class_pipe.decode(out.latents)
    with pytest.raises(UsageError, match=r"give output\.latents of a call"):
        text_pipe.decode(out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be one of pil, np, pt"):
        text_pipe.decode(out.latents, "latent")  # type: ignore[arg-type]


def test_the_three_forms_are_the_same_image(text_pipe: Pipeline) -> None:
    pil, array, tensor = (text_pipe(PROMPTS, seed=1, output_type=form) for form in ("pil", "np", "pt"))
    assert [image.size for image in pil.images] == [(32, 32)] * 2
    assert array.images.shape == (2, 32, 32, 3) and array.images.dtype == np.uint8
    assert tensor.images.shape == (2, 3, 32, 32) and 0 <= tensor.images.min() <= tensor.images.max() <= 1
    assert np.array_equal(np.stack([np.asarray(image) for image in pil.images]), array.images)
    assert torch.equal((tensor.images * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(array.images))


def test_an_image_of_a_batch_is_the_image_of_its_seed(text_pipe: Pipeline) -> None:
    batch = pixels(text_pipe, PROMPTS, seed=[5, 9])
    for index, seed in enumerate((5, 9)):
        torch.testing.assert_close(batch[index], pixels(text_pipe, PROMPTS[index], seed=seed)[0], atol=1e-4, rtol=0)
    counted = text_pipe(PROMPTS, seed=5, num_images_per_prompt=2)
    assert counted.seeds == (5, 6, 7, 8)
    assert counted.captions == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert not torch.equal(batch[0], batch[1])


def test_features_stand_for_their_prompt(text_pipe: Pipeline) -> None:
    assert text_pipe.text_encoder is not None
    features = text_pipe.text_encoder.encode(PROMPTS)
    by_words = pixels(text_pipe, PROMPTS, "sand", seed=3)
    negative = text_pipe.text_encoder.encode(["sand"])
    by_features = pixels(text_pipe, prompt_embeds=features.rows(), negative_prompt_embeds=negative.features[0], seed=3)
    assert torch.equal(by_words, by_features)
    without = pixels(text_pipe, PROMPTS, seed=3)
    assert not torch.equal(by_words, without)
    assert torch.equal(pixels(text_pipe, PROMPTS, "", seed=3), without), "an empty text is none"


def test_a_pipeline_without_text_encoder_takes_features_only(tiny_model: Infinity, tmp_path: Path) -> None:
    save_model(tmp_path, "tiny", tiny_model, WordEncoder(**TEXT), TEXT, {}, torch.float32)
    bare = Pipeline.from_pretrained(tmp_path, text_encoder=None)
    with pytest.raises(UsageError, match="without a text encoder; give prompt_embeds"):
        bare("a red circle")
    assert pixels(bare, prompt_embeds=torch.randn(4, TINY.text_channels), seed=0).shape[0] == 1


def test_classes_by_number(class_pipe: Pipeline) -> None:
    output = class_pipe(class_labels=[3, 7], seed=1, output_type="pt")
    assert output.images.shape == (2, 3, 16, 16) and output.captions == ["class 3", "class 7"]
    assert torch.allclose(output.images[1], pixels(class_pipe, class_labels=7, seed=2)[0], atol=1e-4)
    assert not torch.equal(pixels(class_pipe, class_labels=3, seed=2), pixels(class_pipe, class_labels=7, seed=2))


def test_one_number_of_guidance_is_spread_over_the_scales(class_pipe: Pipeline, text_pipe: Pipeline) -> None:
    seen: list[float] = []
    class_pipe(class_labels=1, guidance_scale=4.0, seed=0, callback_on_scale_end=lambda s, _: seen.append(s.guidance))
    assert seen == [1.0, 1.75, 2.5, 3.25, 4.0]
    seen.clear()
    own = [1.0, 1.5, 1.0, 1.0, 3.0]
    class_pipe(class_labels=1, guidance_scale=own, seed=0, callback_on_scale_end=lambda s, _: seen.append(s.guidance))
    assert seen == own
    seen.clear()
    text_pipe(PROMPTS[0], guidance_scale=4.0, seed=0, callback_on_scale_end=lambda s, _: seen.append(s.guidance))
    assert set(seen) == {4.0}
    seen.clear()
    settings: dict[str, Any] = {"guidance_scale": 4.0, "guidance_schedule": "linear-hold", "seed": 0}
    text_pipe(PROMPTS[0], **settings, callback_on_scale_end=lambda s, _: seen.append(s.guidance))
    assert seen == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 3.5]


def test_a_guidance_scale_of_one_is_off_in_every_family(class_pipe: Pipeline, text_pipe: Pipeline) -> None:
    for pipe, subject in ((text_pipe, {"prompt": PROMPTS[0]}), (class_pipe, {"class_labels": 1})):
        for scale in (1, [1.0] * len(pipe.schedule())):
            report = pipe(**subject, guidance_scale=scale, seed=0).report
            assert {scale.branches for scale in report.scales} == {1}


def test_smooth_codes_change_a_class_and_are_refused_for_text(class_pipe: Pipeline, text_pipe: Pipeline) -> None:
    plain, smooth = (pixels(class_pipe, class_labels=1, seed=0, more_smooth=flag) for flag in (False, True))
    assert not torch.equal(plain, smooth)
    with pytest.raises(UsageError):
        text_pipe(PROMPTS[0], more_smooth=True)


def test_the_last_preview_is_the_image(text_pipe: Pipeline) -> None:
    previews: list[torch.Tensor] = []
    output = text_pipe(
        PROMPTS[0],
        seed=0,
        output_type="pt",
        callback_on_scale_end=lambda _, state: previews.append(text_pipe.preview(state, "pt")),
    )
    assert len(previews) == len(output.report.scales) == 7
    assert torch.equal(previews[-1], output.images) and not torch.equal(previews[0], output.images)


def test_a_repeated_prompt_is_not_encoded_again(text_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pixels(text_pipe, "a red star", seed=0)

    def refuse(*_: object) -> TextFeatures:
        raise AssertionError("encoded again")

    monkeypatch.setattr(WordEncoder, "encode", refuse)
    assert torch.equal(first, pixels(text_pipe, "a red star", seed=0))
    with pytest.raises(AssertionError):
        text_pipe("a green circle", seed=0)


def test_keeping_all_is_exactly_dense(text_pipe: Pipeline, class_pipe: Pipeline) -> None:
    for pipe, subject in ((text_pipe, {"prompt": PROMPTS}), (class_pipe, {"class_labels": [1, 2]})):
        dense = pixels(pipe, **subject, seed=0)
        assert torch.equal(dense, pixels(pipe, **subject, seed=0, method=StepVAR(keep=1)))
        assert not torch.equal(dense, pixels(pipe, **subject, seed=0, method=StepVAR(keep=0.3, last=2)))


def test_a_generator_is_a_stream(text_pipe: Pipeline) -> None:
    images = [pixels(text_pipe, PROMPTS[0], generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*images)
    generator = torch.Generator().manual_seed(4)
    output = text_pipe(PROMPTS[0], generator=generator)
    assert output.seeds is None
    assert not torch.equal(images[0], pixels(text_pipe, PROMPTS[0], generator=generator))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "prompt: say what to generate"),
        ({"prompt": []}, r"prompt=\[\]"),
        ({"prompt": [3]}, "3 is not a string"),
        ({"prompt": "a", "class_labels": 3}, "class_labels: this model does not take it; give a prompt"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(2, 128)}, "prompt and prompt_embeds"),
        ({"prompt_embeds": torch.zeros(2, 64)}, "64 channels: this model needs 128"),
        ({"prompt": PROMPTS, "negative_prompt": ["sand"] * 3}, "3 given for 2 prompts"),
        ({"prompt": "a", "seed": [1, 2]}, "2 seeds for 1 images"),
        ({"prompt": "a", "seed": -1}, "seed=-1"),
        ({"prompt": "a", "seed": 1, "generator": torch.Generator()}, "give one of them"),
        ({"prompt": "a", "guidance_scale": [1.0, 2.0]}, "2 values for 7 scales"),
        ({"prompt": "a", "guidance_schedule": "steep"}, "guidance_schedule='steep': must be one of constant, linear"),
        ({"prompt": "a", "guidance_scale": [1.0] * 7, "guidance_schedule": "linear"}, "give one of the two"),
        ({"prompt": "a", "temperature": 0.0}, "temperature=0.0"),
        ({"prompt": "a", "top_p": 1.5}, "top_p=1.5"),
        ({"prompt": "a", "cfg_layers": (-4,)}, "cfg_layers=-4"),
        ({"prompt": "a", "aspect_ratio": "3:x"}, "aspect_ratio='3:x'"),
        ({"prompt": "a", "resolution": "3M"}, "resolution '3M'"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"prompt": "a", "output_type": "jpeg"}, "output_type='jpeg'"),
        ({"prompt": "a", "method": "magic"}, "method 'magic'"),
        ({"prompt": "a", "method": 3}, "method=3"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(
    text_pipe: Pipeline, arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Infinity, "start", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(UsageError, match=said):
        text_pipe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "class_labels: say what to generate"),
        ({"prompt": "a dog"}, "prompt: this model does not take it; give class_labels"),
        ({"class_labels": []}, "an empty list"),
        ({"class_labels": 10}, "class 10: must be below 10"),
        ({"class_labels": 1, "aspect_ratio": "3:2"}, "squares only"),
    ],
)
def test_wrong_classes_are_named(class_pipe: Pipeline, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        class_pipe(**arguments)


def test_small_text_encoders_are_not_offloaded(text_pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="has no large text encoder"):
        text_pipe.enable_text_encoder_offload()


def test_the_embedded_model_generates_what_it_is_told() -> None:
    pipe = Pipeline.from_pretrained("scenes")
    output = pipe("a large red circle on snow", seed=0, aspect_ratio="3:2", output_type="pt")
    assert output.images.shape == (1, 3, 208, 312)
    assert output.report.schedule == "0.25M 0.666"
    red, green, blue = output.images[0].flatten(1)
    assert ((red > 0.6) & (green < 0.4) & (blue < 0.4)).float().mean() > 0.05
    assert ((red > 0.8) & (green > 0.8) & (blue > 0.8)).float().mean() > 0.3


def test_top_k_per_scale(class_pipe: Pipeline) -> None:
    one, several = (pixels(class_pipe, class_labels=1, seed=0, top_k=k) for k in (1, (1, 1, 1, 1, 1)))
    assert torch.equal(one, several)
    last = pixels(class_pipe, class_labels=1, seed=0, top_k=(1, 1, 1, 1, 0))
    assert not torch.equal(one, last)
    with pytest.raises(UsageError, match="top_k: 6 values for 5 scales"):
        class_pipe(class_labels=1, top_k=(1, 1, 1, 1, 1, 7))
    with pytest.raises(UsageError, match="top_k: 2 values for 5 scales"):
        class_pipe(class_labels=1, top_k=(1, 2))
    with pytest.raises(UsageError, match="top_k=-1"):
        class_pipe(class_labels=1, top_k=(1, 1, 1, 1, -1))


def test_features_with_padding_are_for_models_that_read_it(text_pipe: Pipeline) -> None:
    padded = ContextFeatures.of(torch.zeros(1, 4, TINY.text_channels))
    with pytest.raises(UsageError, match="prompt_embeds: this model reads no padding"):
        text_pipe(prompt_embeds=padded)
