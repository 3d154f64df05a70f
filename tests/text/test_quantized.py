"""Text encoders whose linear layers are stored in int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.kernels.linear import Int8Linear
from stepvar.text import Qwen2Encoder, T5Encoder
from stepvar.text.pretrained import OffloadableEncoder
from tests.text.test_qwen2 import save_qwen2

PROMPTS = ("a red circle on sand", "a blue square")
LOW = (torch.float32, torch.bfloat16, torch.float16)

Load = Callable[[torch.dtype], OffloadableEncoder]


@pytest.fixture(params=["t5", "qwen2"])
def load(request: pytest.FixtureRequest, t5_folder: Path, tmp_path: Path) -> Load:
    if request.param == "t5":
        return lambda dtype: T5Encoder(t5_folder, dtype=dtype)
    save_qwen2(tmp_path / "qwen2")
    return lambda dtype: Qwen2Encoder(tmp_path / "qwen2", slots=8, dtype=dtype)


def encode(encoder: OffloadableEncoder) -> torch.Tensor:
    features: torch.Tensor = encoder.encode(PROMPTS).features  # type: ignore[attr-defined]
    return features


def weights(encoder: OffloadableEncoder) -> dict[str, torch.Tensor]:
    assert encoder._model is not None
    return encoder._model.state_dict()


@pytest.mark.parametrize("dtype", LOW)
def test_features_stay_close(load: Load, dtype: torch.dtype) -> None:
    plain, quantized = load(dtype), load(dtype).quantize()
    exact, close = encode(plain), encode(quantized)
    assert close.dtype == torch.float32
    assert 0 < (close - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_linear_weights_take_a_byte_and_the_others_stay(load: Load) -> None:
    plain, quantized = load(torch.bfloat16), load(torch.bfloat16).quantize()
    assert quantized._model is not None
    layers = {name for name, layer in quantized._model.named_modules() if isinstance(layer, Int8Linear)}
    before, after = weights(plain), weights(quantized)
    saved = sum(before[f"{name}.weight"].numel() - 4 * len(before[f"{name}.weight"]) for name in layers)
    assert saved > 0
    assert sum(t.nbytes for t in before.values()) - sum(t.nbytes for t in after.values()) == saved
    kept = before.keys() - {f"{name}.weight" for name in layers}
    assert any("embed" in name or "shared" in name for name in kept)
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_weights_visit_the_device_quantised(load: Load) -> None:
    resting = load(torch.float32).quantize()
    expected = encode(resting)
    assert torch.equal(encode(resting.enable_offload("cpu")), expected)
    assert torch.equal(encode(resting.disable_offload().to("cpu", torch.float32)), expected)


def test_another_precision_or_no_weights_are_refused(load: Load) -> None:
    encoder = load(torch.bfloat16).quantize()
    with pytest.raises(UsageError, match=r"float32: the weights of .* are stored in int8 for torch.bfloat16"):
        encoder.to(dtype=torch.float32)
    assert encoder.dtype == torch.bfloat16 and torch.isfinite(encode(encoder)).all()
    encoder.free()
    with pytest.raises(UsageError, match="were freed"):
        encoder.quantize()
