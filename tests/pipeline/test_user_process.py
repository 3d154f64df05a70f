"""The state of the process that a pipeline runs in, its precision and its device: what users bring of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stepvar.pipeline.pretrained
from stepvar.core.noise import SeededNoise
from stepvar.errors import CheckpointError, UsageError
from tests.checkpoint_writer import write_infinity, write_var
from tests.pipeline.conftest import TEXT, image, load

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
