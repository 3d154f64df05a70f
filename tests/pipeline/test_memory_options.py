"""What saves memory, as a user calls it: offloaded weights, a smaller cache, decoding by tiles and one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar import Pipeline
from stepvar.checkpoints import LoadedModel
from stepvar.core.plan import Step
from stepvar.core.report import Recorder
from stepvar.engine import Engine
from stepvar.errors import UsageError
from stepvar.evaluation.comparison import compare
from stepvar.models.offload import OFFLOADS, blocks_of, tensors_of
from stepvar.text import T5Encoder
from stepvar.utils.device import execution_device
from tests.helpers import TINY, make_model
from tests.text.tiny import save_tokenizer, tiny_t5

PROMPTS = ["a red circle on sand", "a blue square"]
WAYS: dict[str, Callable[[Pipeline], Pipeline]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload("cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload("cpu"),
    "sequential, two blocks stay": lambda pipe: pipe.enable_sequential_cpu_offload("cpu", blocks_on_device=2),
}


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """A tiny Infinity with a tiny T5."""
    tiny_t5(TINY.text_channels).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    loaded = LoadedModel("tiny", "infinity", make_model(), None, {"guidance_scale": 3.0})
    pipe = Pipeline(loaded, T5Encoder(tmp_path, dtype=torch.float32))
    pipe.progress = False
    return pipe


def pixels(pipe: Pipeline, **settings: Any) -> torch.Tensor:
    images: torch.Tensor = pipe(PROMPTS, seed=3, output_type="pt", resolution="0.06M", **settings).images
    return images


@pytest.mark.parametrize("way", WAYS)
def test_images_previews_and_comparisons_are_those_of_a_pipeline_on_its_device(pipe: Pipeline, way: str) -> None:
    previews: list[torch.Tensor] = []

    def on_scale_end(step: Step, state: Any) -> None:
        previews.append(pipe.preview(state, "pt"))

    expected, seen = pixels(pipe, callback_on_scale_end=on_scale_end), list(previews)
    previews.clear()
    assert WAYS[way](pipe) is pipe and pipe.device.type == "cpu"
    assert torch.equal(pixels(pipe, callback_on_scale_end=on_scale_end), expected)
    assert all(torch.equal(one, other) for one, other in zip(previews, seen, strict=True))
    compared = compare(pipe, PROMPTS, "stepvar", 3, 1, resolution="0.06M")
    pipe.disable_cpu_offload().to("cpu")
    again = compare(pipe, PROMPTS, "stepvar", 3, 1, resolution="0.06M")
    for name in ("dense", "other"):
        first, second = (getattr(one, name).images for one in (compared, again))
        assert [image.tobytes() for image in first] == [image.tobytes() for image in second]


def test_all_weights_rest_on_the_cpu_and_the_text_encoder_works_on_the_device(pipe: Pipeline) -> None:
    pipe.enable_model_cpu_offload("meta")
    assert pipe.device.type == "meta" and pipe.text_encoder is not None
    assert pipe.text_encoder.device.type == "meta"
    for module in (pipe.model.transformer, pipe.model.tokenizer.decoder, pipe.text_encoder._model):
        assert {tensor.device.type for tensor in tensors_of(module)} == {"cpu"}
    pipe.enable_sequential_cpu_offload("cpu")
    assert pipe.device.type == "cpu" and pipe.model.offload.name == "sequential"
    assert all(block.stream is not None for block in blocks_of(pipe.model))
    with pytest.raises(UsageError, match=r"the model is offloaded: move it .* before, or disable"):
        pipe.to("cpu")
    with pytest.raises(UsageError, match="blocks_on_device=9: must be from 0 to 3"):
        pipe.enable_sequential_cpu_offload("cpu", blocks_on_device=9)


def test_without_a_gpu_offloading_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="offload: this machine has no GPU"):
        execution_device(cpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert execution_device(cpu).type == "mps" and execution_device(torch.device("meta")).type == "meta"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert execution_device(cpu).type == "cuda"


@pytest.mark.parametrize("name", OFFLOADS)
def test_weights_that_move_are_in_no_graph_and_the_report_says_so(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr("stepvar.engine.runner.generate", lambda *arguments: ran.append(arguments))
    model, recorder = make_model(), Recorder()
    model.enable_offload(name, torch.device("cpu"))
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(type(model), "stage", lambda self, condition, plan, padded: condition)
    arguments: list[Any] = [model, None, None, None, None, None, recorder]
    Engine("graphs").generate(*arguments)
    assert len(ran) == 1 and recorder.engine.startswith("eager: the weights are offloaded")


def test_a_cache_in_eight_bits_stays_in_any_precision(pipe: Pipeline) -> None:
    expected = pixels(pipe)
    pipe.model.set_cache_dtype("int8")
    assert (pixels(pipe) - expected).abs().mean() < 0.2
    assert pipe.to(dtype=torch.bfloat16).model.precision.cache == "int8"
    assert torch.isfinite(pixels(pipe)).all()
    with pytest.raises(UsageError, match="cache_dtype='fp4': must be int8, or None"):
        pipe.model.set_cache_dtype("fp4")
    with pytest.raises(UsageError, match="cache_dtype='fp4'"):
        Pipeline.from_pretrained("scenes", cache_dtype="fp4")  # type: ignore[arg-type]


def test_slices_are_images_decoded_alone(pipe: Pipeline) -> None:
    together = pixels(pipe)
    one_by_one = pixels(pipe.enable_vae_slicing())
    assert "decoding one image at a time" in repr(pipe)
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=0)
    assert torch.equal(pixels(pipe.disable_vae_slicing()), together)
    tiled = pixels(pipe.enable_vae_slicing().enable_vae_tiling(8))
    torch.testing.assert_close(tiled, pixels(pipe.disable_vae_slicing()), atol=1e-4, rtol=0)


def test_keys_and_values_are_there_for_previews_and_gone_when_it_ends(pipe: Pipeline) -> None:
    states: list[Any] = []
    sizes: list[int] = []

    def on_scale_end(step: Step, state: Any) -> None:
        states.append(state)
        sizes.append(state.cache.nbytes)

    expected = pixels(pipe, callback_on_scale_end=on_scale_end)
    assert sizes[0] > 0 and set(sizes) == {sizes[0]} and states[0].cache.nbytes == 0
    assert torch.equal(pipe.preview(states[0], "pt"), expected)  # what is left can be decoded
