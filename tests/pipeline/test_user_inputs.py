"""What users bring to a pipeline: numbers of other libraries, words of other libraries, shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepvar import StepVAR
from stepvar.core.words import ATTRIBUTES, CALL, LOAD
from stepvar.errors import ExperimentalWarning, StepvarError, UsageError
from stepvar.methods import make_method
from stepvar.models.shapes import nearest_sizes, sizes_of
from tests.checkpoint_writer import write_var
from tests.helpers import TINY_VAR
from tests.pipeline.conftest import TEXT, image, load


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"seed": np.int64(7)}, {"seed": 7}),
        ({"seed": [np.int64(7)]}, {"seed": 7}),
        ({"seed": torch.tensor(7)}, {"seed": 7}),
        ({"seed": np.array([7])}, {"seed": 7}),
        ({"class_labels": np.int64(2)}, {"class_labels": 2}),
        ({"class_labels": torch.tensor([2])}, {"class_labels": 2}),
        ({"class_labels": "2"}, {"class_labels": 2}),
        ({"class_labels": " -1"}, {"class_labels": -1}),
        ({"top_k": np.int32(5)}, {"top_k": 5}),
        ({"guidance_scale": np.float32(2)}, {"guidance_scale": 2.0}),
        ({"temperature": torch.full((5,), 0.5)}, {"temperature": 0.5}),
        ({"cfg_layers": 0}, {"cfg_layers": (0,)}),
        ({"num_images_per_prompt": np.int64(1)}, {}),
        ({"aspect_ratio": (1, 1)}, {}),
        ({"aspect_ratio": "3/3"}, {}),
        (
            {"method": make_method("stepvar", keep=np.float32(0.5), last=torch.tensor(2))},
            {"method": StepVAR(keep=0.5, last=2)},
        ),
    ],
)
def test_numbers_of_other_libraries_mean_what_those_of_python_do(pipe, given, plain):
    assert np.array_equal(image(pipe, **given), image(pipe, **plain))


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": True},
        {"seed": 1.0},
        {"seed": "1"},
        {"seed": 10**5000},
        {"seed": range(2**31)},
        {"class_labels": 1.5},
        {"class_labels": True},
        {"class_labels": TINY_VAR.classes},
        {"class_labels": "--3"},
        {"class_labels": "²"},
        {"class_labels": "tench"},  # a class of ImageNet, which this model does not have
        {"class_labels": []},
        {"guidance_scale": 1e39},
        {"guidance_scale": float("nan")},
        {"guidance_scale": [1.0] * 6},
        {"guidance_scale": ()},
        {"temperature": 0},
        {"top_p": float("nan")},
        {"more_smooth": 1},
        {"num_images_per_prompt": 2**31},
        {"num_images_per_prompt": 2.0},
        {"class_labels": [1] * 200, "num_images_per_prompt": 100},
        {"aspect_ratio": ""},
        {"aspect_ratio": 0},
        {"aspect_ratio": (3, 2, 1)},
        {"aspect_ratio": True},
        {"resolution": ""},
        {"seconds": float("nan")},
        {"num_frames": 9},
        {"output_type": "latents"},
        {"callback_on_scale_end": 3},
        {"callback_on_scale_end": lambda pipe, step, time, given: given},  # as diffusers calls it
        {"callback_on_scale_end": lambda: None},
        {"generator": [torch.Generator()] * 2},
        {"generator": 1},
        {"noise": 1},
        {"speedup": float("nan")},
        {"height": 16},
        {"height": 512, "width": 512},
        {"height": 16, "width": 16, "aspect_ratio": 1},
    ],
    ids=lambda wrong: f"{list(wrong)}",
)
def test_nonsense_is_refused_in_one_line_before_anything_is_computed(pipe, wrong, monkeypatch):
    monkeypatch.setattr(pipe.engine, "generate", lambda *_: pytest.fail("something was computed"))
    given = {"class_labels": 3} | ({} if {"generator", "noise"} & wrong.keys() else {"seed": 1}) | wrong
    with pytest.raises(UsageError) as caught:
        pipe(**given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"power_iterations": 10**9},
        {"structure_weight": float("inf")},
        {"last": float("nan")},
        {"last": 1.5},
        {"keep": True},
        {"blocks_before": 10**9},
        {"taper": np.nan},
        {"scope": None},
    ],
)
def test_settings_of_a_method_are_bounded(wrong):
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))}="):
        StepVAR(**wrong)


def test_a_generator_per_image_gives_what_it_gives_alone(pipe):
    both = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
    batch = image(pipe, class_labels=[1, 2], seed=None, generator=both)
    for index, (seed, label) in enumerate(((4, 1), (9, 2))):
        alone = image(pipe, class_labels=label, seed=None, generator=[torch.Generator().manual_seed(seed)])
        assert np.abs(batch[index].astype(int) - alone[0]).max() <= 1
    stream = image(pipe, class_labels=1, seed=None, generator=torch.Generator().manual_seed(4))
    alone = image(pipe, class_labels=1, seed=None, generator=[torch.Generator().manual_seed(4)])
    assert np.array_equal(stream, alone)


# Words of other libraries.


@pytest.mark.parametrize("word", sorted(CALL.answers))
def test_words_of_a_call_are_answered_in_one_line(pipe, word):
    with pytest.raises(UsageError, match=f"^{word}: ") as caught:
        pipe(class_labels=1, **{word: 1})
    assert "\n" not in str(caught.value) and isinstance(caught.value, TypeError)


@pytest.mark.parametrize("word", sorted(LOAD.answers))
def test_words_of_loading_are_answered_in_one_line(word):
    with pytest.raises(UsageError, match=f"^{word}: "):
        load(**{word: 1})


@pytest.mark.parametrize("word", sorted(ATTRIBUTES))
def test_attributes_of_other_pipelines_are_answered(pipe, word):
    assert not hasattr(pipe, word)
    with pytest.raises(UsageError, match=rf"^Pipeline\.{word}: "):
        getattr(pipe, word)


def test_an_unknown_word_names_the_nearest_known_one(pipe):
    for call in (pipe, pipe.settings, load):
        with pytest.raises(UsageError, match=r"^(guidence_scale|devise): "):
            call(**({"devise": "cpu"} if call == load else {"guidence_scale": 3}))
    with pytest.raises(UsageError, match="did you mean 'guidance_scale'"):
        pipe(class_labels=1, guidence_scale=3)
    with pytest.raises(AttributeError, match="did you mean 'enable_vae_tiling'"):
        pipe.enable_vae_tilling()


def test_words_with_a_meaning_are_served(tmp_path):
    folder = write_var(tmp_path / "model").folder
    pipe = load(
        folder,
        torch_dtype="bf16",
        device_map="cpu",
        use_safetensors=True,
        low_cpu_mem_usage=True,
        local_files_only=True,
    )
    assert pipe.dtype == torch.bfloat16
    assert len(pipe(class_labels=1, num_images=2, return_dict=True).images) == 2
    with pytest.raises(UsageError, match=r"return_dict=False: the result is an Output"):
        pipe(class_labels=1, return_dict=False)
    with pytest.raises(UsageError, match="torch_dtype and dtype: mean the same"):
        load(folder, torch_dtype="bf16", dtype=torch.float16)
    with pytest.raises(UsageError, match="device_map='balanced': a model runs on one device"):
        load(folder, device_map="balanced")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.progress is False


def test_a_saved_pipeline_is_the_same(tmp_path, pipe):
    folder = pipe.save_pretrained(tmp_path / "saved")
    again = load(folder)
    assert again.name == pipe.name and again.defaults == pipe.defaults
    assert np.array_equal(image(again), image(pipe))
    with pytest.raises(StepvarError, match="exists"):
        pipe.save_pretrained(folder)


def test_a_saved_embedded_model_keeps_its_words(tmp_path):
    pipe = load("scenes")
    again = load(pipe.save_pretrained(tmp_path / "saved", dtype="float32"))
    assert again.text_encoder.encode(["a red disc"]).features.equal(pipe.text_encoder.encode(["a red disc"]).features)


# Shapes.


def test_a_size_in_pixels_is_the_shape_of_its_schedule(text_pipe):
    stride = text_pipe.model.config.stride
    settings = {"resolution": "0.06M", "aspect_ratio": "3:2"}
    grid = text_pipe.schedule(**settings)[-1]
    by_size = text_pipe(prompt_embeds=TEXT, seed=1, height=grid.h * stride, width=grid.w * stride)
    assert by_size.images[0].size == (grid.w * stride, grid.h * stride)
    with pytest.raises(UsageError, match=r"height=30, width=31: no schedule .* the nearest are (\d+x\d+, ){5}\d+x\d+"):
        text_pipe(prompt_embeds=TEXT, height=30, width=31)


def test_the_sizes_that_an_error_names_are_near_in_shape(text_pipe):
    largest = max(height for height, width in sizes_of(text_pipe.model) if height == width)
    assert nearest_sizes(sizes_of(text_pipe.model), (4 * largest, 4 * largest))[0] == (largest, largest)


@pytest.mark.parametrize("ratio", ["10:1", (1, 10), 5])
def test_a_ratio_far_from_all_is_refused_with_the_nearest(text_pipe, star_pipe, ratio):
    for pipe, nearest in ((text_pipe, r"(3|0\.333)"), (star_pipe, r"1(\.5)?")):
        with pytest.raises(UsageError, match=rf"^aspect_ratio=.*: far from all .*; the nearest is {nearest} "):
            pipe.schedule(ratio)
    assert text_pipe.schedule("16:9").name.endswith("0.571")


def test_a_ratio_that_a_video_model_lacks_is_refused():
    pipe = load("scenes-video")
    with pytest.raises(UsageError, match=r"aspect_ratio='16:9': far from all .*; the nearest is 1 "):
        pipe.schedule("16:9")


def test_a_resolution_above_the_model_s_own_is_warned_of():
    pipe = load("scenes")
    with pytest.warns(ExperimentalWarning, match=r"resolution '1M': this model was made for 0\.25M"):
        pipe.schedule(resolution="1M")


def test_frames_are_seconds_of_a_video(star_pipe):
    config = star_pipe.model.config
    seconds = (config.tokenizer.frames(config.usual_latents) - 1) / config.fps
    frames = config.tokenizer.frames(config.usual_latents)
    output = star_pipe(prompt_embeds=TEXT, seed=1, num_frames=frames, output_type="np")
    assert output.videos.shape[1] == frames
    assert star_pipe.schedule(seconds=seconds) == star_pipe.schedule()
    with pytest.raises(UsageError, match=r"image: an empty list"):
        star_pipe(prompt_embeds=TEXT, seed=1, image=[], seconds=seconds)


# What is shown.


def test_pipelines_and_results_describe_themselves_in_a_line(pipe, star_pipe, capsys, monkeypatch):
    assert repr(pipe).startswith("Pipeline('tiny-var': var, ") and "cpu float32" in repr(pipe)
    output = pipe(class_labels=[1, 2], seed=5)
    assert repr(output).startswith("Output(2 images of ") and "seeds 5, 6" in repr(output) and len(repr(output)) < 250
    html = output._repr_html_()
    assert html.count("data:image/png;base64,") == 2 and "class 1" in html and "tokens" in html
    for form in ("np", "pt"):
        assert pipe(class_labels=1, seed=5, output_type=form)._repr_html_().count("<img") == 1
    video = star_pipe(prompt_embeds=TEXT, seed=1)
    assert video._repr_html_().count("data:image/gif;base64,") == 1 and "1 video of" in repr(video)
