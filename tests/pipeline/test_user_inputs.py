"""What users bring to a pipeline: numbers of other libraries, words of other libraries, the state of their process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import stepvar.pipeline.pretrained
from stepvar import Pipeline, StepVAR
from stepvar.checkpoints import save_model
from stepvar.core.noise import SeededNoise
from stepvar.core.words import ATTRIBUTES, CALL, LOAD
from stepvar.errors import CheckpointError, ExperimentalWarning, MethodError, StepvarError, UsageError
from stepvar.methods import Method, Pruning, make_method
from stepvar.models.shapes import nearest_sizes, sizes_of
from stepvar.models.var import VAR
from tests.checkpoint_writer import write_infinity, write_star, write_var
from tests.helpers import TINY_VAR

load: Any = Pipeline.from_pretrained  # words that it does not declare are what is tested


@pytest.fixture(scope="module")
def pipe(tiny_var: VAR, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("classes")
    save_model(folder, "tiny-var", tiny_var, None, None, {"guidance_scale": 1.5}, torch.float32)
    return load(folder)


@pytest.fixture(scope="module")
def text_pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_infinity(tmp_path_factory.mktemp("text")).folder, text_encoder=None)


@pytest.fixture(scope="module")
def star_pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_star(tmp_path_factory.mktemp("star")).folder, text_encoder=None)


TEXT = torch.linspace(-1, 1, 5 * 128).view(5, 128)


def image(pipe: Pipeline, **given: Any) -> np.ndarray:
    arguments: dict[str, Any] = {"class_labels": 3, "seed": 1, "output_type": "np"} | given
    found: np.ndarray = pipe(**arguments).images
    return found


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


# The state of the process.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_type_of_the_process_changes_nothing(tmp_path, pipe, dtype):
    expected, folder = image(pipe), pipe.save_pretrained(tmp_path / "saved")
    torch.set_default_dtype(dtype)
    try:
        assert np.array_equal(image(pipe), expected)
        assert np.array_equal(image(load(folder)), expected)
        draws = SeededNoise([1]).normal(2, 0, (1, 16, 8), torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(draws, SeededNoise([1]).normal(2, 0, (1, 16, 8), torch.device("cpu")))


def test_the_default_device_of_the_process_changes_nothing(pipe):
    expected = image(pipe)
    with torch.device("meta"):
        assert np.array_equal(image(pipe), expected)
    torch.set_default_device("meta")
    try:
        assert np.array_equal(image(pipe), expected)
        assert pipe.settings(guidance_scale=2.0).guidance[-1] == 2.0
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        torch.enable_grad,
        torch.random.fork_rng,
    ],
)
def test_modes_of_pytorch_change_nothing(pipe, mode):
    expected = image(pipe)
    with mode():
        assert np.array_equal(image(pipe), expected)


def test_deterministic_algorithms_change_nothing(pipe):
    expected = image(pipe)
    torch.use_deterministic_algorithms(True)
    try:
        assert np.array_equal(image(pipe), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_random_numbers_of_the_process_are_neither_used_nor_moved(pipe):
    torch.manual_seed(0)
    before, expected = torch.get_rng_state(), image(pipe)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert np.array_equal(image(pipe), expected)


def test_a_model_loaded_in_inference_mode_can_be_moved_and_trained(tmp_path):
    folder = write_var(tmp_path / "var").folder
    with torch.inference_mode():
        pipe = load(folder)
        pipe(class_labels=1, seed=1)
    pipe.to(torch.bfloat16)
    assert not any(weight.is_inference() for weight in pipe.model.parameters())


# Ways to change a precision or a device.


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.to(torch.float16),
        lambda pipe: pipe.to("fp16"),
        lambda pipe: pipe.to("cpu", "half"),
        lambda pipe: pipe.to(dtype="float16"),
        lambda pipe: pipe.to(torch_dtype=torch.float16),
        lambda pipe: pipe.to(torch.zeros(1, dtype=torch.float16)),
        lambda pipe: pipe.model.to(torch.zeros(1, dtype=torch.float16)),
        lambda pipe: pipe.model.to(other=torch.zeros(1, dtype=torch.float16)),
        lambda pipe: pipe.model.type(torch.float16),
        lambda pipe: pipe.model.half(),
    ],
)
def test_every_way_to_a_precision_keeps_the_policy(change, tmp_path):
    pipe = load(write_infinity(tmp_path / "model").folder, text_encoder=None)
    change(pipe)
    assert pipe.dtype == torch.float16
    assert pipe(prompt_embeds=TEXT, seed=1).report.dtype == "float16"
    formats = {weight.dtype for weight in pipe.model.parameters()}
    assert formats == {torch.float16, torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.model.double(),
        lambda pipe: pipe.model.type(torch.float64),
        lambda pipe: pipe.to(torch.float64),
        lambda pipe: pipe.to("float64"),
        lambda pipe: pipe.to("cpu", "cpu"),
        lambda pipe: pipe.to("tpu"),
        lambda pipe: pipe.to(3.5),
        lambda pipe: pipe.to(devise="cpu"),
    ],
)
def test_other_precisions_and_devices_are_refused(pipe, change):
    with pytest.raises(UsageError):
        change(pipe)
    assert pipe.dtype == torch.float32
    image(pipe)


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(stepvar.pipeline.pretrained, "load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match="device 'cuda': this machine has none"):
        load(tmp_path, device="cuda")


@pytest.mark.parametrize("word", ["variant", "revision", "tokenizer", "text_encoder", "name"])
def test_an_empty_text_is_not_left_out(word):
    with pytest.raises(UsageError, match=f"^{word}='': must be a text that is not empty"):
        load(**{word: ""})


def test_a_missing_text_encoder_is_found_before_the_weights_are_read(monkeypatch, tmp_path):
    folder = write_infinity(tmp_path / "model").folder
    monkeypatch.setattr(stepvar.pipeline.pretrained, "load_model", lambda *_, **__: pytest.fail("weights were read"))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        with pytest.raises(UsageError, match="needs transformers"):
            load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: no model\.safetensors"):
        load(folder, text_encoder=tmp_path / "empty")


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


# Methods of a user's own.


@dataclass(frozen=True)
class Broken(Method):
    name: ClassVar[str] = "broken"
    how: str = "nan"

    def run_stack(self, run, tokens, step, state):
        if self.how == "none":
            return None
        if self.how == "half":
            return tokens.take(torch.zeros(len(tokens.features), 1, dtype=torch.int64))
        if self.how == "error":
            raise ZeroDivisionError("mine")
        return run(tokens).with_features(tokens.features * torch.nan)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("nan", StepvarError, r"pass 0 \(1x1\): NaN or infinity behind the blocks, .* method 'broken'"),
        ("none", UsageError, r"method 'broken': run_stack\(\) gave a NoneType at pass 0"),
        ("half", UsageError, r"method 'broken': run_stack\(\) gave features \(2, 1, \d+\) at pass 1"),
        ("error", MethodError, r"method 'broken' failed \(test_user_inputs\.py:\d+, in run_stack\): ZeroDivisionError"),
    ],
)
def test_what_a_method_gives_back_is_looked_at(pipe, how, error, message):
    with pytest.raises(error, match=message):
        pipe(class_labels=1, seed=1, method=Broken(how=how))


def test_the_traceback_of_a_method_s_own_error_is_kept(pipe):
    with pytest.raises(MethodError) as caught:
        pipe(class_labels=1, seed=1, method=Broken(how="error"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@dataclass(frozen=True)
class Nameless(Pruning):
    def score(self, tokens, step, state) -> Tensor:
        return tokens.features.float().sum(-1)


@dataclass(frozen=True)
class Miscounts(Method):
    name: ClassVar[str] = "miscounts"

    def tokens_at(self, step, layer, depth):
        return step.grid.size / 2


def test_an_incomplete_method_is_refused(pipe):
    with pytest.raises(UsageError, match=r"Nameless: name=None; give it one of its own"):
        pipe(class_labels=1, method=Nameless())
    with pytest.raises(UsageError, match=r"'miscounts': tokens_at\(\) gave 0\.5 at pass 0"):
        pipe(class_labels=1, method=Miscounts())


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


class Writes:
    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


def test_a_process_without_a_terminal_object_generates(pipe, monkeypatch, tmp_path: Path):
    closed = (tmp_path / "log").open("w")
    closed.close()
    for stream in (None, Writes(), closed):
        with monkeypatch.context() as without:
            without.setattr(sys, "stderr", stream)
            assert pipe(class_labels=3, seed=1).seeds == (1,)
