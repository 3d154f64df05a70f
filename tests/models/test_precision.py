"""Which part of a model computes in which number format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepvar.errors import UsageError
from stepvar.methods import FastVAR, StepVAR
from stepvar.models.infinity.tokenizer import WrappedParts
from stepvar.models.model import VARModel
from stepvar.models.precision import Precision, apply_precision
from stepvar.models.var import VARConfig
from tests.helpers import (
    LENGTHS,
    SQUARE,
    TINY,
    TINY_VAR,
    Watch,
    equal_everywhere,
    generate_infinity,
    generate_var,
    make_model,
    make_settings,
    make_text,
    make_var,
)

LOW = [torch.bfloat16, torch.float16]
MAKERS: list[Any] = [pytest.param(make_model, id="infinity"), pytest.param(make_var, id="var")]


def formats(model: VARModel) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def generate_any(model: Any, method: Any = None) -> Any:
    if hasattr(model.config, "text_channels"):
        return generate_infinity(model, make_settings(SQUARE), method, make_text(LENGTHS))
    return generate_var(model, make_settings(SQUARE), method, (1, 2, 3))


def test_formats_of_infinity() -> None:
    kept = formats(make_model().set_precision(torch.bfloat16))
    blocks = "transformer.block_chunks.1.module.0."
    low = ["sa.mat_qkv.weight", "sa.q_bias", "sa.zero_k_bias", "sa.proj.bias", "ca.mat_q.weight", "ca.mat_kv.weight"]
    low += ["ca.v_bias", "ca.proj.weight", "ffn.fc1.weight", "ffn.fc2.bias"]
    exact = ["sa.scale_mul_1H11", "ada_gss", "ca_norm.weight", "ca_norm.bias"]
    assert {kept[blocks + name] for name in low} == {torch.bfloat16}
    assert {kept[blocks + name] for name in exact} == {torch.float32}
    outside = [dtype for name, dtype in kept.items() if name.startswith("transformer.") and "block" not in name]
    assert set(outside) == {torch.float32}
    assert {dtype for name, dtype in kept.items() if name.startswith("tokenizer.")} == {torch.bfloat16}


def test_formats_of_var() -> None:
    kept = formats(make_var().set_precision(torch.float16))
    blocks = "transformer.blocks.2."
    assert kept[blocks + "ada_lin.1.weight"] == kept[blocks + "attn.mat_qkv.weight"] == torch.float16
    assert kept[blocks + "attn.scale_mul_1H11"] == kept["transformer.pos_1LC"] == torch.float32
    assert kept["transformer.head.weight"] == kept["transformer.head_nm.ada_lin.1.weight"] == torch.float32
    quantiser = {dtype for name, dtype in kept.items() if name.startswith("tokenizer.quantize.")}
    assert quantiser == {torch.float32}
    assert kept["tokenizer.post_quant_conv.weight"] == kept["tokenizer.decoder.conv_in.weight"] == torch.float16


def test_each_part_has_its_own_format() -> None:
    model = make_model().set_precision(Precision(torch.bfloat16, torch.bfloat16, torch.float16, torch.float32))
    kept = formats(model)
    assert kept["transformer.word_embed.weight"] == kept["transformer.text_norm.weight"] == torch.bfloat16
    assert kept["transformer.head.weight"] == kept["transformer.head_nm.ada_lin.1.weight"] == torch.float16
    assert kept["tokenizer.decoder.conv_in.conv.weight"] == torch.float32
    generated = generate_any(model, StepVAR())
    assert {buffer.dtype for buffer in generated.state.cache.keys} == {torch.bfloat16}
    assert torch.isfinite(model.decode(generated.state)).all()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", LOW)
def test_what_travels_in_which_format(make: Callable[[], Any], dtype: torch.dtype) -> None:
    model, watch = make().set_precision(dtype), Watch()
    generated = generate_any(model, watch)
    assert {tokens.features.dtype for tokens in watch.seen.values()} == {torch.float32}
    cache = generated.state.cache
    assert {buffer.dtype for buffer in (*cache.keys, *cache.values)} == {dtype}
    assert {logits.dtype for logits in generated.logits} == {torch.float32}
    condition = generated.state.condition
    assert {part.dtype for part in (condition.pooled, *condition.modulation)} == {torch.float32}
    assert generated.state.latent.dtype == model.decode(generated.state).dtype == torch.float32
    assert model.dtype == dtype


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("method", [StepVAR(keep=0.5), FastVAR(prune=(0.5,), skip=1, blocks_before=1, blocks_after=1)])
def test_methods_run_in_low_precision(make: Callable[[], Any], dtype: torch.dtype, method: Any) -> None:
    model = make().set_precision(dtype)
    assert torch.isfinite(model.decode(generate_any(model, method).state)).all()


@pytest.mark.parametrize("make", MAKERS)
def test_sublayers_multiply_in_the_format_of_the_blocks(make: Callable[[], Any]) -> None:
    model = make().set_precision(torch.bfloat16)
    seen: list[tuple[nn.Module, torch.dtype, torch.dtype]] = []

    def note(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        seen.append((module, given[0].dtype, result.dtype))

    for name, module in model.transformer.named_modules():
        if isinstance(module, nn.Linear) and ("block" in name):
            module.register_forward_hook(note)
    generate_any(model)
    assert len({id(module) for module, _, _ in seen}) >= 3 * model.config.depth
    assert {(given, made) for _, given, made in seen} == {(torch.bfloat16, torch.bfloat16)}


@pytest.mark.parametrize("make", MAKERS)
def test_float32_changes_nothing(make: Callable[[], Any]) -> None:
    before, after = make(), make().set_precision(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert equal_everywhere(generate_any(before).logits, generate_any(after).logits)


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("cpu", torch.bfloat16),
        lambda model: model.to(device=None, dtype=torch.bfloat16),
        lambda model: model.to(device="cpu", dtype=torch.bfloat16),
        lambda model: model.bfloat16(),
    ],
)
def test_moving_follows_the_policy(move: Callable[[Any], Any]) -> None:
    moved = move(make_model())
    assert moved.precision == Precision.of(torch.bfloat16)
    assert formats(moved) == formats(make_model().set_precision(torch.bfloat16))


def test_moving_without_a_format_keeps_it() -> None:
    model = make_var().half()
    kept = formats(model)
    assert formats(model.to("cpu")) == formats(model.to(device=None, dtype=None)) == kept
    assert model.dtype == torch.float16 and model.float().dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": torch.float64}, r"blocks=torch.float64: must be one of float32, bfloat16, float16"),
        ({"head": torch.int8}, r"head=torch.int8"),
        ({"residual": torch.bfloat16}, r"residual=torch.bfloat16: must be float32, or that of the blocks"),
    ],
)
def test_impossible_formats(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Precision(**wrong)
    with pytest.raises(UsageError, match=r"dtype torch.float64: unknown"):
        make_var().to(torch.float64)


def test_every_weight_belongs_somewhere() -> None:
    with pytest.raises(KeyError, match="weight 'weight' belongs to no part"):
        apply_precision(nn.Linear(2, 2), Precision(), ((r"other", "head"),))


@pytest.mark.parametrize("dtype", LOW)
def test_group_statistics_are_float32(dtype: torch.dtype) -> None:
    """Far from zero: statistics in the low format would be off by more than the whole spread."""
    norm = WrappedParts(TINY.tokenizer).norm(32).to(dtype)
    x = (30 + 0.5 * torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = F.group_norm(x.float(), 32, eps=1e-6)
    low = norm(x)
    assert low.dtype == dtype
    assert (low.float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", LOW)
def test_errors_are_those_of_rounding(dtype: torch.dtype, shared: bool) -> None:
    """Along the same first scale, logits differ by a few units in the last place of the low format."""
    config = VARConfig(**{**TINY_VAR.__dict__, "shared_adaln": shared})
    pairs = [(generate_any(make_var(config)), generate_any(make_var(config).set_precision(dtype)))]
    pairs += [(generate_any(make_model()), generate_any(make_model().set_precision(dtype)))]
    for exact, low in pairs:
        error = (low.logits[0] - exact.logits[0]).square().mean().sqrt() / exact.logits[0].square().mean().sqrt()
        assert 0 < error < 4 * torch.finfo(dtype).eps
