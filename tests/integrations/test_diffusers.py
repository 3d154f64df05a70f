"""Our pipeline behind the interface of diffusers, with the real diffusers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar import Pipeline, StepVAR
from stepvar.checkpoints import save_model
from stepvar.errors import OutputError, UsageError
from stepvar.models.infinity import Infinity
from stepvar.text import WordEncoder
from tests.helpers import TINY, TINY_STAR, make_star

diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")

import huggingface_hub  # noqa: E402
from diffusers.utils import hub_utils  # noqa: E402

from stepvar.integrations.diffusers import StepVARPipeline, VideoPipelineOutput  # noqa: E402

WORDS: dict[str, Any] = {
    "vocabulary": ["a", "circle", "green", "on", "red", "sand", "star"],
    "synonyms": {},
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
PROMPTS = ["a red circle", "a green star on sand"]


@pytest.fixture(scope="module")
def ours(tiny_model: Infinity, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.manual_seed(0)
    words = WORDS | {"width": TINY.text_channels}
    folder = tmp_path_factory.mktemp("text")
    save_model(folder, "tiny", tiny_model, WordEncoder(**words), words, {"guidance_scale": 2.0}, torch.float32)
    return Pipeline.from_pretrained(folder)


@pytest.fixture
def pipe(ours: Pipeline) -> StepVARPipeline:
    return StepVARPipeline(ours)


@pytest.fixture(scope="module")
def video_pipe(tmp_path_factory: pytest.TempPathFactory) -> StepVARPipeline:
    torch.manual_seed(0)
    words = WORDS | {"width": TINY_STAR.text_channels}
    folder = tmp_path_factory.mktemp("star")
    save_model(folder, "tiny-star", make_star(), WordEncoder(**words), words, {"aspect_ratio": "3:2"}, torch.float32)
    return StepVARPipeline.from_pretrained(folder)


def bytes_of(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_it_is_a_pipeline_of_diffusers(pipe: StepVARPipeline, ours: Pipeline) -> None:
    assert isinstance(pipe, diffusers.DiffusionPipeline)
    assert pipe.components == {"pipeline": ours} and StepVARPipeline(**pipe.components).pipeline is ours
    assert (pipe.device, pipe.dtype) == (ours.device, torch.float32) == (pipe._execution_device, torch.float32)
    assert pipe.transformer is ours.model.transformer and pipe.vae is ours.model.tokenizer
    assert pipe.to("cpu", torch.float32, silence_dtype_warnings=True) is pipe
    assert "tiny" in repr(pipe)


def test_pictures_are_to_the_bit_those_of_our_pipeline(pipe: StepVARPipeline, ours: Pipeline) -> None:
    given: dict[str, Any] = {"method": StepVAR(keep=0.5), "guidance_scale": 3.0, "num_images_per_prompt": 2}
    out = pipe(PROMPTS, "sand", seed=3, **given)
    assert type(out) is diffusers.ImagePipelineOutput
    assert bytes_of(out.images) == bytes_of(ours(PROMPTS, "sand", seed=3, **given).images)
    (images,) = pipe(PROMPTS, "sand", seed=3, return_dict=False, **given)
    assert bytes_of(images) == bytes_of(out.images)


@pytest.mark.parametrize("several", [False, True])
def test_a_generator_is_the_source_of_random_numbers(pipe: StepVARPipeline, ours: Pipeline, several: bool) -> None:
    def stream() -> Any:
        streams = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        return streams if several else streams[0]

    first = pipe(PROMPTS, generator=stream()).images
    assert bytes_of(first) == bytes_of(pipe(PROMPTS, generator=stream()).images)
    assert bytes_of(first) == bytes_of(ours(PROMPTS, generator=stream()).images)
    assert bytes_of(first) != bytes_of(pipe(PROMPTS, generator=torch.Generator().manual_seed(9)).images)


def test_arrays_and_tensors_have_the_layout_of_diffusers(pipe: StepVARPipeline) -> None:
    pil, array, tensor, latent = (
        pipe(PROMPTS, seed=1, output_type=form).images for form in ("pil", "np", "pt", "latent")
    )
    assert array.shape == (2, 32, 32, 3) and array.dtype == np.float32
    assert tensor.shape == (2, 3, 32, 32) and np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert bytes_of(pipe.numpy_to_pil(array)) == bytes_of(pil)
    assert latent.shape == (2, 6, 16, 16)
    assert torch.equal((pipe.pipeline.model.decode_latent(latent) + 1) / 2, tensor)


def test_videos_have_frames(video_pipe: StepVARPipeline) -> None:
    ours = video_pipe.pipeline(PROMPTS, seconds=1, seed=1, output_type="np").videos
    out = video_pipe(PROMPTS, num_frames=3, seed=1)
    assert isinstance(out, VideoPipelineOutput) and out[0] is out.frames
    assert np.array_equal(np.stack([np.stack([np.asarray(frame) for frame in video]) for video in out.frames]), ours)
    array, tensor = (video_pipe(PROMPTS, num_frames=3, seed=1, output_type=form).frames for form in ("np", "pt"))
    assert array.shape == (2, 3, 32, 48, 3) and tensor.shape == (2, 3, 3, 32, 48)
    assert np.array_equal((array * 255).round(), ours)
    assert video_pipe(PROMPTS, num_frames=3, seed=1, output_type="latent").frames.ndim == 5
    assert isinstance(video_pipe(PROMPTS[0], seconds=0, seed=1), diffusers.ImagePipelineOutput)


def test_a_callback_is_called_after_each_scale(pipe: StepVARPipeline) -> None:
    seen: list[tuple[int, int, list[str], float]] = []

    def look(one: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        assert one is pipe
        seen.append((step, timestep, list(given), float(given["latents"].abs().sum())))
        return given

    images = pipe(PROMPTS, seed=1, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"]).images
    assert [entry[:3] for entry in seen] == [(scale, scale, ["latents"]) for scale in range(7)]
    assert len({entry[3] for entry in seen}) == 7
    assert bytes_of(images) == bytes_of(pipe(PROMPTS, seed=1).images)


@pytest.mark.parametrize("form", ["pil", "np", "latent"])
def test_a_callback_stops_the_generation(pipe: StepVARPipeline, form: Any) -> None:
    scales: list[int] = []

    def stop(one: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        scales.append(step)
        one._interrupt = step == 2
        return given

    early = pipe(PROMPTS[0], seed=1, output_type=form, callback_on_step_end=stop).images
    whole = pipe(PROMPTS[0], seed=1, output_type=form).images
    assert scales == [0, 1, 2] and len(early) == 1
    assert not np.array_equal(np.asarray(early[0]), np.asarray(whole[0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds: there is latents only"),
        ({"callback_on_step_end": lambda pipe, i, t, given: {"latents": 2 * given["latents"]}}, "latents were changed"),
        ({"callback_on_step_end_tensor_inputs": "prompt_embeds"}, "inputs: prompt_embeds: there is latents only"),
        ({"callback_on_step_end": 3}, "callback_on_step_end=3: give a function"),
        ({"callback_on_scale_end": print}, "both run after each scale"),
        ({"latents": torch.zeros(1)}, "latents: what a generation starts from is no noise"),
        ({"sigmas": [1.0]}, "sigmas: a generation runs one pass per scale"),
        ({"output_type": "jax"}, "output_type='jax': must be one of pil, np, pt, latent"),
    ],
)
def test_what_has_no_meaning_is_answered(pipe: StepVARPipeline, given: dict[str, Any], message: str) -> None:
    given = {"callback_on_step_end": lambda pipe, i, t, given: given} | given
    with pytest.raises(UsageError, match=message):
        pipe(PROMPTS[0], seed=1, **given)


def test_arguments_that_tools_always_pass_do_no_harm(pipe: StepVARPipeline) -> None:
    with pytest.warns(UserWarning, match="num_inference_steps=50: has no meaning"):
        out = pipe(PROMPTS[0], seed=1, num_inference_steps=50, latents=None, eta=None, height=None, width=None)
    assert bytes_of(out.images) == bytes_of(pipe(PROMPTS[0], seed=1).images)


def test_methods_of_diffusers_work_or_say_why_not(pipe: StepVARPipeline, ours: Pipeline) -> None:
    pipe.set_progress_bar_config(disable=True, leave=False)
    assert ours.progress is False
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert ours.sliced and ours.tile is not None
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert not ours.sliced and ours.tile is None
    assert not hasattr(pipe, "scheduler") and not hasattr(pipe, "unet")
    pipe.disable_attention_slicing()
    with pytest.raises(UsageError, match="fused kernels already"):
        pipe.enable_attention_slicing()
    with pytest.raises(UsageError, match="enable_sequential_cpu_offload"):
        pipe.enable_group_offload(torch.device("cpu"))
    with pytest.raises(AttributeError, match=r"StepVARPipeline\.load_lora_weights: adapters are not supported"):
        pipe.load_lora_weights("x")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pipe.nothing  # noqa: B018
    pipe.maybe_free_model_hooks()


def test_offloading_is_ours(pipe: StepVARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(Pipeline, name, lambda self, device, name=name: asked.append((name, device)))
    pipe.enable_model_cpu_offload()
    pipe.enable_model_cpu_offload(gpu_id=1)
    pipe.enable_sequential_cpu_offload(device="cuda")
    assert asked == [
        ("enable_model_cpu_offload", None),
        ("enable_model_cpu_offload", "cuda:1"),
        ("enable_sequential_cpu_offload", "cuda"),
    ]


def test_a_saved_folder_is_read_by_both_classes(pipe: StepVARPipeline, ours: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StepVARPipeline" and index["pipeline"] == ["stepvar", "Pipeline"]
    expected = bytes_of(ours(PROMPTS, seed=3).images)
    again = StepVARPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert bytes_of(again(PROMPTS, seed=3).images) == expected
    assert bytes_of(Pipeline.from_pretrained(folder)(PROMPTS, seed=3).images) == expected
    assert StepVARPipeline.from_pretrained(str(folder), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(OutputError, match="saved"):
        pipe.save_pretrained(folder)
    with pytest.raises(UsageError, match="safetensors only"):
        pipe.save_pretrained(tmp_path / "other", safe_serialization=False)
    with pytest.raises(UsageError, match="variant='fp16'"):
        pipe.save_pretrained(tmp_path / "other", variant="fp16")


@pytest.mark.slow
def test_a_folder_is_read_in_another_process(pipe: StepVARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    code = (
        "from stepvar.integrations.diffusers import StepVARPipeline;"
        f"pipe = StepVARPipeline.from_pretrained({str(tmp_path / 'saved')!r});"
        f"pipe({PROMPTS!r}, seed=3).images[1].save({str(tmp_path / 'out.png')!r})"
    )
    subprocess.run([sys.executable, "-c", f"import torch; torch.set_num_threads(1); {code}"], check=True, timeout=200)
    assert Image.open(tmp_path / "out.png").tobytes() == pipe(PROMPTS, seed=3).images[1].tobytes()


def test_a_model_on_the_hub_is_pushed_and_read(
    pipe: StepVARPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is stood for by a folder; nothing here needs a network."""

    def upload(repo_id: str, folder_path: str, **given: Any) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        return repo_id

    monkeypatch.setattr(hub_utils, "create_repo", lambda repo_id, **given: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *args, **given: huggingface_hub.ModelCard("x"))
    monkeypatch.setattr(hub_utils, "populate_model_card", lambda card, **given: card)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **given: str(tmp_path / repo))
    pipe.push_to_hub("me/tiny", private=True)
    assert (tmp_path / "me/tiny/README.md").exists()
    again = StepVARPipeline.from_pretrained("me/tiny")
    assert bytes_of(again(PROMPTS, seed=3).images) == bytes_of(pipe(PROMPTS, seed=3).images)
    pipe.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="me/second")
    assert (tmp_path / "me/second/model_index.json").exists() and (tmp_path / "local/config.json").exists()


def test_an_embedded_model_is_loaded_by_its_name() -> None:
    with pytest.raises(UsageError, match="variant 'fp16'"):  # before anything is read
        StepVARPipeline.from_pretrained("scenes", variant="fp16")
    with pytest.raises(UsageError, match="model 'scenery': unknown"):
        StepVARPipeline.from_pretrained("scenery")
    for path in ("./folder", "~/folder"):  # which is no repository to download
        with pytest.raises(UsageError, match=f"model {path!r}: unknown"):
            StepVARPipeline.from_pretrained(path)


def test_without_diffusers_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "stepvar.integrations.diffusers")
    with pytest.raises(
        UsageError, match=r"StepVARPipeline: needs the package diffusers; pip install '\.\[diffusers\]'"
    ):
        import_module("stepvar.integrations.diffusers")
