"""Weights that rest on the CPU and visit the device where the work is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepvar.text import T5Encoder, pretrained

PROMPTS = ("a red circle on sand", "a blue square")


@pytest.fixture
def encoder(t5_folder: Path) -> T5Encoder:
    return T5Encoder(t5_folder, dtype=torch.float32)


def resting_on(encoder: T5Encoder) -> set[str]:
    assert encoder._model is not None
    return {weight.device.type for weight in encoder._model.parameters()}


def test_weights_visit_the_device(encoder: T5Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device holds no numbers, but it is another device: what is where can be seen.
    seen: list[set[str]] = []

    def run(model: nn.Module, weights: dict[str, Tensor], kwargs: dict[str, Tensor]) -> Any:
        assert set(weights) == {name for name, _ in model.named_parameters()}
        seen.append({tensor.device.type for tensor in (*weights.values(), *kwargs.values())})
        return SimpleNamespace(last_hidden_state=torch.zeros(*kwargs["input_ids"].shape, 64, device="meta"))

    monkeypatch.setattr(pretrained, "functional_call", run)
    assert encoder.enable_offload("meta") is encoder
    assert encoder.device.type == "meta"
    features = encoder.encode(PROMPTS)
    assert seen == [{"meta"}]
    assert features.features.device.type == "meta"
    assert features.lengths == (6, 4)
    assert resting_on(encoder) == {"cpu"}


def test_same_numbers(encoder: T5Encoder) -> None:
    plain = encoder.encode(PROMPTS).features
    assert torch.equal(encoder.enable_offload("cpu").encode(PROMPTS).features, plain)
    assert torch.equal(encoder.disable_offload().encode(PROMPTS).features, plain)


def test_moving_a_pipeline_does_not_undo_it(encoder: T5Encoder) -> None:
    encoder.enable_offload("cpu").to("meta")
    assert encoder.device.type == "cpu"
    assert resting_on(encoder) == {"cpu"}
    encoder.disable_offload().to("meta")
    assert encoder.device.type == "meta"
    assert resting_on(encoder) == {"meta"}


def test_precision_still_changes(encoder: T5Encoder) -> None:
    encoder.enable_offload("cpu").to("meta", torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    assert encoder.encode(PROMPTS).features.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(t5_folder: Path, dtype: torch.dtype) -> None:
    resident = T5Encoder(t5_folder, dtype=dtype, device="cuda")
    plain = resident.encode(PROMPTS).features
    resident.free()
    before = torch.cuda.memory_allocated()
    encoder = T5Encoder(t5_folder, dtype=dtype).enable_offload("cuda")
    features = encoder.encode(PROMPTS).features
    assert features.is_cuda
    assert torch.equal(features, plain)
    assert resting_on(encoder) == {"cpu"}
    assert torch.cuda.memory_allocated() - before <= 512 * -(-features.numel() * 4 // 512)
