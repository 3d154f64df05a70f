"""Videos from the pipeline, on a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stepvar import Pipeline, SkipLast, StepVAR
from stepvar.checkpoints import save_model
from stepvar.core.plan import Step
from stepvar.errors import UsageError
from stepvar.media.video import Video
from stepvar.models.infinity import Infinity
from stepvar.models.infinity_star.codes import codes_of, enlarge_codes
from stepvar.text import WordEncoder
from tests.helpers import TINY_STAR, make_star

TEXT: dict[str, Any] = {
    "vocabulary": ["a", "ball", "boat", "left", "red", "rolling"],
    "synonyms": {},
    "width": TINY_STAR.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
DEFAULTS = {"guidance_scale": 3.0, "guidance_type": "apg", "temperature": {"clips": [1.0, 0.4]}, "aspect_ratio": "3:2"}
PROMPTS = ["a red ball rolling left", "a boat"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("star")
    save_model(folder, "tiny-star", make_star(), WordEncoder(**TEXT), TEXT, DEFAULTS, torch.float32)
    return Pipeline.from_pretrained(folder)


def ramp(width: int = 90, height: int = 64) -> Image.Image:
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def test_a_video_has_frames_a_rate_and_a_file(pipe: Pipeline, tmp_path: Path) -> None:
    out = pipe(PROMPTS[0], seconds=3, seed=1, method=StepVAR(context_clips="pruned"))
    (video,) = out.videos
    assert video.frames.shape == (7, 32, 48, 3) and video.fps == TINY_STAR.fps
    assert not len(out.images) and out.captions == [PROMPTS[0]]
    assert Video.read(video.save(tmp_path / "ball")).frames.shape == video.frames.shape
    assert out.report.schedule == "tiny 0.666 x4" and {scale.clip for scale in out.report.scales} == {0, 1}
    assert "3x4x6" in str(out.report)
    assert [(step.clip, kept.shape) for step, kept in out.kept] == [(0, (1, 1, 4, 6)), (1, (1, 3, 4, 6))]


def test_the_three_forms_are_the_same_video(pipe: Pipeline) -> None:
    pil, array, tensor = (pipe(PROMPTS, seconds=1, seed=1, output_type=form).videos for form in ("pil", "np", "pt"))
    assert array.shape == (2, 3, 32, 48, 3) and tensor.shape == (2, 3, 3, 32, 48)
    assert np.array_equal(np.stack([video.frames for video in pil]), array)
    assert torch.equal((tensor * 255).round().byte().permute(0, 2, 3, 4, 1), torch.from_numpy(array))


@pytest.mark.parametrize(
    "arguments", [{"seconds": 3}, {"seconds": 0}, {"seconds": 3, "image": Image.new("RGB", (90, 64))}]
)
def test_latents_are_decoded_later_to_the_same_video(pipe: Pipeline, arguments: dict[str, Any]) -> None:
    whole = pipe(PROMPTS[0], seed=1, output_type="np", **arguments)
    latents = pipe(PROMPTS[0], seed=1, output_type="latent", **arguments).latents
    assert latents is not None
    assert np.array_equal(pipe.decode(latents, "np"), whole[0])


def test_no_seconds_is_an_image_and_none_the_usual_length(pipe: Pipeline) -> None:
    out = pipe(PROMPTS, seconds=0, seed=1)
    assert [image.size for image in out.images] == [(48, 32)] * 2 and not out.videos
    assert len(pipe(PROMPTS[0], seed=1).videos[0]) == 7
    assert len(pipe(PROMPTS[0], seed=1, seconds=6).videos[0]) == 13


def test_a_video_of_a_batch_is_the_one_that_its_seed_gives(pipe: Pipeline) -> None:
    both = pipe(PROMPTS, seed=4, seconds=1, output_type="np").videos
    assert np.abs(both[1].astype(int) - pipe(PROMPTS[1], seed=5, seconds=1, output_type="np").videos[0]).max() <= 1


def test_settings_of_the_authors_and_of_the_caller(pipe: Pipeline) -> None:
    seen: list[Step] = []
    settings: dict[str, Any] = {"seconds": 1, "seed": 1, "output_type": "np"}
    first = pipe(PROMPTS[0], callback_on_scale_end=lambda step, _: seen.append(step), **settings).videos
    assert [step.temperature for step in seen] == [1.0] * 5 + [0.4] * 4
    assert not np.array_equal(first, pipe(PROMPTS[0], guidance_type="cfg", **settings).videos)
    assert not np.array_equal(first, pipe(PROMPTS[0], temperature=1.0, **settings).videos)
    assert not np.array_equal(first, pipe(PROMPTS[0], prompt_suffix=" boat", **settings).videos)
    with pytest.raises(UsageError, match="guidance_type='strong': must be one of cfg, apg"):
        pipe(PROMPTS[0], guidance_type="strong", **settings)


def first_latent(pipe: Pipeline, forced: Mapping[int, Tensor]) -> Tensor:
    total = torch.zeros(1, 16, 1, 4, 6)
    schedule = pipe.schedule(seconds=3)
    for index in range(5):
        cells = forced[index].view(1, *schedule[index].shape, -1).movedim(-1, 1)
        total += enlarge_codes(codes_of(cells), 16, (4, 6))
    return total


def test_a_video_begins_with_the_image(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[Step, Any]] = []
    forced: dict[int, Tensor] = {}
    accumulate = pipe.model.accumulate

    def listen(state: Any, indices: Tensor, step: Step, *others: Any) -> None:
        if step.forced:
            forced[step.index] = indices
        accumulate(state, indices, step, *others)

    monkeypatch.setattr(pipe.model, "accumulate", listen)
    settings: dict[str, Any] = {"seconds": 3, "seed": 2, "output_type": "np"}
    shown = ramp(96, 64)
    out = pipe(PROMPTS[0], image=shown, callback_on_scale_end=lambda *end: ends.append(end), **settings)
    assert [step.index for step, _ in ends if step.forced] == list(forced) == list(range(5))
    torch.testing.assert_close(ends[-1][1].latent[:, :, :1], first_latent(pipe, forced))
    assert [scale.kept > 0 for scale in out.report.scales[:5]] == [False] * 4 + [True]  # one pass of the image's
    shown.save(tmp_path / "shown.png")
    assert np.array_equal(out.videos, pipe(PROMPTS[0], image=tmp_path / "shown.png", **settings).videos)
    assert np.array_equal(out.videos, pipe(PROMPTS[0], image=np.asarray(shown), **settings).videos)
    other = pipe(PROMPTS[0], image=ramp().transpose(Image.Transpose.FLIP_LEFT_RIGHT), **settings)
    assert not np.array_equal(out.videos[:, 0], other.videos[:, 0])
    short = pipe(PROMPTS[0], image=shown, method=SkipLast(1), **settings)
    assert np.array_equal(short.videos[:, 0], out.videos[:, 0])  # what is forced is not skipped


def test_the_image_gives_the_shape(pipe: Pipeline) -> None:
    assert pipe(PROMPTS[0], image=ramp(50, 50), seconds=1, seed=0).videos[0].size == (40, 40)
    assert pipe(PROMPTS[0], image=ramp(50, 50), seconds=1, seed=0, aspect_ratio="3:2").videos[0].size == (48, 32)
    two = pipe(PROMPTS, image=[ramp(), ramp(96, 64)], seconds=1, seed=0)
    assert len(two.videos) == 2


def test_a_video_goes_on(pipe: Pipeline) -> None:
    before = Video(np.stack([np.asarray(ramp(48, 32))] * 9), 2)
    out = pipe(PROMPTS[0], video=before, seed=3)
    assert len(out.videos[0]) == 13
    computed = [scale.index for scale in out.report.scales if scale.branches]
    assert computed == [4, 8, 9, 10, 11, 12]  # of each forced clip its last pass, which the next clip reads
    same = pipe(PROMPTS[0], video=before.images(), seed=3)
    assert np.array_equal(out.videos[0].frames, same.videos[0].frames)


def test_what_cannot_be_generated_is_refused(pipe: Pipeline, tiny_model: Infinity, tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"seconds": 2}, r"seconds=2: this model .* 1, 3, 6 seconds, or 0 for a still image"),
        ({"image": ramp(), "video": "a.mp4"}, "image and video: give one of them"),
        ({"image": ramp(), "seconds": 0}, "image and seconds=0"),
        ({"image": [ramp()] * 3}, "image: 3 given for 1 prompts"),
        ({"image": 3}, "image: a int; give a PIL image"),
        ({"image": tmp_path / "no.png"}, "no.png"),
        (
            {"video": np.zeros((9, 8, 8, 3), np.uint8), "seconds": 3},
            "video: this model generates 3 seconds, and goes on",
        ),
        ({"video": np.zeros((3, 8, 8, 3), np.uint8)}, "video: has 3 frames at 2 per second, and 7 are needed"),
        ({"class_labels": 3}, "class_labels: this model does not take it"),
        ({"more_smooth": True, "seconds": 1}, "smooth"),
        ({"resolution": "0.40M"}, "resolution '0.40M': choose one of tiny"),
        ({"prompt_suffix": 3}, "prompt_suffix=3"),
    )
    for settings, message in cases:
        with pytest.raises(UsageError, match=message):
            pipe(PROMPTS[0], **settings)
    save_model(tmp_path / "still", "still", tiny_model, WordEncoder(**TEXT), TEXT, {}, torch.float32)
    still = Pipeline.from_pretrained(tmp_path / "still")
    wrong: dict[str, Any] = {"seconds": 5, "image": ramp(), "video": "a.mp4", "prompt_suffix": "x", "continuation": 1}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=f"{name}: this model does not take it; give it to a model that generates"):
            still("a boat", **{name: value})
    with pytest.raises(UsageError, match="seconds=5: this model generates images"):
        still.schedule(seconds=5)


def test_the_prompt_is_dressed_as_in_training(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    assert pipe.text_encoder is not None
    encode = pipe.text_encoder.encode

    def listen(prompts: list[str]) -> Any:
        heard.extend(prompts)
        return encode(["a boat"])

    monkeypatch.setattr(pipe.text_encoder, "encode", listen)
    monkeypatch.setattr(pipe.model, "config", replace(pipe.model.config, prompt_prefix="<<<t={seconds}s>>>"))
    out = pipe("a boat", seconds=1, prompt_suffix=", calm", seed=0)
    pipe("a boat", seconds=0, seed=0)
    assert heard == ["<<<t=1s>>>a boat, calm", "a boat"] and out.captions == ["a boat"]


def test_a_continuation_goes_on_clip_by_clip(tmp_path: Path) -> None:
    config = replace(TINY_STAR, continues_videos=True, image_repetitions=(2, 1, 1), latents=(4,))
    save_model(tmp_path, "model_of_clips", make_star(config), WordEncoder(**TEXT), TEXT, DEFAULTS, torch.float32)
    model_of_clips = Pipeline.from_pretrained(tmp_path)
    shown = [ramp(48, 32)] * 5 + [ramp(48, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * 5
    story = model_of_clips.start_continuation(shown, seed=1)
    assert story.former.shape == (1, 16, 4, 4, 6) and story.first.shape == (1, 16, 1, 4, 6)
    first = model_of_clips(PROMPTS[0], continuation=story, seed=1)
    assert first.videos[0].frames.shape == (6, 32, 48, 3)  # the frames of the new clip alone
    assert len(first.report.scales) == 4 and all(scale.branches == 2 for scale in first.report.scales)
    assert torch.equal(first.continuation.former[:, :, 0], story.former[:, :, -1])
    latents = model_of_clips(PROMPTS[0], continuation=story, seed=1, output_type="latent").latents
    assert latents is not None
    assert np.array_equal(model_of_clips.decode(latents, "np")[0], first.videos[0].frames)
    second = model_of_clips(PROMPTS[1], continuation=first.continuation, seed=2, method=StepVAR())
    again = model_of_clips(PROMPTS[1], continuation=story, seed=2, method=StepVAR())
    assert not np.array_equal(second.videos[0].frames, again.videos[0].frames)  # what came before matters
    two = model_of_clips(PROMPTS, continuation=story, seed=1)
    assert len(two.videos) == 2 and len(two.continuation.former) == 2
    assert np.abs(two.videos[0].frames.astype(int) - first.videos[0].frames).max() <= 1
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "continuation: this model goes on from a video"),
        ({"continuation": 3}, "continuation: a int"),
        ({"continuation": story, "image": ramp()}, "continuation: it says how the video begins"),
        ({"continuation": two.continuation}, "continuation: is of 2 videos, and 1 are to be generated"),
    )
    for settings, message in cases:
        with pytest.raises(UsageError, match=message):
            model_of_clips(PROMPTS[0], **settings)
    with pytest.raises(UsageError, match="video: has 5 frames at 2 per second, and 7 are needed"):
        model_of_clips.start_continuation(shown[:5])


def test_only_some_models_take_continuations(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="continuation: this model generates videos of their own"):
        pipe.start_continuation([ramp()] * 9)
    with pytest.raises(UsageError, match="continuation: this model generates videos of their own"):
        pipe(PROMPTS[0], continuation=1)
