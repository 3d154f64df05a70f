"""Weights in eight bits: which ones, how large they are, and what they cost in exactness."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.precision import FollowingModel
from stepvar.checkpoints.saving import save_model
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings
from stepvar.cost.dry_run import dry_run
from stepvar.errors import UsageError
from stepvar.generation import generate
from stepvar.kernels import linear, ops
from stepvar.kernels.fp8 import Quantised
from stepvar.kernels.linear import FP8Linear, Int8Linear, Quantization, QuantizedLinear, check_quantization
from stepvar.methods import FastVAR, Method, StepVAR
from stepvar.models.blocks import BlockRun
from stepvar.models.offload import OffloadName
from stepvar.models.precision import Precision
from tests.helpers import make_hart, make_model, make_settings, make_star, make_switti, make_var
from tests.methods.families import ROWS, FamilyRow

ONE_EACH = [pytest.param(row, id=row.family) for row in {row.family: row for row in ROWS}.values()]
KINDS = [pytest.param("int8", id="int8"), pytest.param("fp8", id="fp8")]
BOUNDS = {"int8": 0.05, "fp8": 0.25}
"""Largest relative error of the logits (root mean square) in float32; random weights are more sensitive than trained
ones, and those of InfinityStar's tiny model most."""

families = pytest.mark.parametrize("row", ONE_EACH)
kinds = pytest.mark.parametrize("kind", KINDS)


def quantized(row: FamilyRow, kind: Quantization, dtype: torch.dtype = torch.float32) -> Any:
    return copy.deepcopy(row.model()).to(dtype=dtype).quantize(kind)


def layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@torch.inference_mode()
def record(model: Any, row: FamilyRow, indices: tuple[Tensor, ...] = (), method: Any = None) -> dict[str, Tensor]:
    """What a generation of two samples computes, along given indices if there are any."""
    noted: dict[str, Tensor] = {}
    method = method or Method()
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, 2)
    following: Any = FollowingModel(model, indices, noted)
    state = generate(following, row.condition(range(2)), plan, method, SeededNoise((0, 1)))
    return noted | {"latent": state.latent}


def by_pass(noted: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
    return tuple(values for key, values in noted.items() if key.startswith(f"{name}_"))


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).float().square().mean().sqrt() / wanted.float().square().mean().sqrt())


def test_the_products_of_the_blocks_are_quantised_and_nothing_else() -> None:
    found = {
        family: {name.rpartition(".")[0].rpartition(".")[2] + "." + name.rpartition(".")[2] for name in layers(model)}
        for family, model in (
            ("infinity", make_model().quantize("int8")),
            ("var", make_var().quantize("int8")),
            ("hart", make_hart().quantize("int8")),
            ("infinity-star", make_star().quantize("int8")),
            ("switti", make_switti().quantize("int8")),
        )
    }
    feed_forward = {"ffn.fc1", "ffn.fc2"}
    assert found["infinity"] == {"sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj"} | feed_forward
    assert found["var"] == {"attn.mat_qkv", "attn.proj"} | feed_forward
    assert found["hart"] == {"attn.qkv_proj", "attn.proj", "ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"}
    own, text = {"attn.to_qkv", "attn.proj"}, {"cross_attn.to_q", "cross_attn.to_kv", "cross_attn.proj"}
    assert found["switti"] == own | text | {"ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"}
    attention = {f"attn.{name}_proj" for name in "qkvo"}
    assert found["infinity-star"] == attention | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    names = [*layers(make_model().quantize("int8")), *layers(make_hart().quantize("int8"))]
    assert all("block" in name and "text_proj" not in name for name in names)


@families
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_takes_one_byte(row: FamilyRow, kind: Quantization, dtype: torch.dtype) -> None:
    plain, model = copy.deepcopy(row.model()).to(dtype=dtype), quantized(row, kind, dtype)
    weights = sum(layer.weight.numel() for layer in layers(model).values())
    channels = sum(layer.out_features for layer in layers(model).values())
    assert weights > 0 and {layer.weight.element_size() for layer in layers(model).values()} == {1}
    assert nbytes(plain) - nbytes(model) == weights * (dtype.itemsize - 1) - 4 * channels


def test_layers_are_replaced_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are replaced are gone before the next ones are quantised."""
    model = make_var()
    old = [weakref.ref(layer) for layer in model.transformer.blocks.modules() if type(layer) is nn.Linear]
    alive: list[int] = []

    def counted(weight: Tensor) -> Quantised:
        alive.append(sum(layer() is not None for layer in old))
        return linear.int8_rows(weight)

    monkeypatch.setattr(Int8Linear, "quantize", staticmethod(counted))
    replaced = len(layers(model.quantize("int8")))
    assert alive == list(range(len(old), len(old) - replaced, -1))


@families
@kinds
def test_logits_stay_within_the_stated_error(row: FamilyRow, kind: Quantization) -> None:
    exact = record(row.model(), row)
    close = record(quantized(row, kind), row, by_pass(exact, "indices"))
    errors = [relative(*pair) for pair in zip(by_pass(close, "logits"), by_pass(exact, "logits"), strict=True)]
    assert 0 < max(errors) < BOUNDS[kind]


@families
@kinds
@pytest.mark.parametrize("method", [StepVAR(), FastVAR(prune=(0.5,), skip=0, blocks_before=0, blocks_after=1)])
def test_methods_act_on_quantised_models(row: FamilyRow, kind: Quantization, method: Method) -> None:
    noted = record(quantized(row, kind, torch.bfloat16), row, method=method)
    assert torch.isfinite(noted["latent"]).all()


@families
@kinds
def test_fused_blocks_agree_with_plain_ones(
    row: FamilyRow, kind: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(row, kind, torch.bfloat16)
    plain = record(model, row)
    runs: list[int] = []
    run_fused = BlockRun._run_fused

    def counted(self: Any, *arguments: Any) -> Any:
        runs.append(1)
        return run_fused(self, *arguments)

    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    monkeypatch.setattr(BlockRun, "_run_fused", counted)
    fused = record(model, row, by_pass(plain, "indices"))
    assert runs
    for got, wanted in zip(by_pass(fused, "logits"), by_pass(plain, "logits"), strict=True):
        assert relative(got, wanted) < 0.02


@kinds
def test_fused_blocks_hand_rows_on_in_eight_bits(kind: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a normalisation and an activation nothing is left for a layer to quantise itself."""
    model, row = make_model().to(dtype=torch.bfloat16).quantize(kind), ROWS[0]
    monkeypatch.setattr(BlockRun, "can_fuse", lambda self, tokens: True)
    entered: dict[str, set[type]] = {}

    def note(name: str) -> Any:
        return lambda layer, given: entered.setdefault(name.rpartition(".")[2], set()).add(type(given[0]))

    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(note(name))
    record(model, row)
    quantised = Quantised if kind == "fp8" else Tensor
    assert entered["mat_q"] == entered["fc2"] == {quantised} and entered["proj"] == {Tensor}


@families
@kinds
def test_a_dry_run_counts_the_bytes_and_the_same_operations(row: FamilyRow, kind: Quantization) -> None:
    plain, model = copy.deepcopy(row.model()).to(dtype=torch.bfloat16), quantized(row, kind, torch.bfloat16)
    settings: Settings = make_settings(row.schedule, 3.0)
    plan, condition = Method().plan(settings, model.info, 2), row.condition(range(2))
    before, after = (dry_run(one, condition, plan, Method()) for one in (plain, model))
    assert after.weights == nbytes(model) < before.weights
    assert after.flops == before.flops and after.cache == before.cache
    on_meta = copy.deepcopy(plain).to("meta").quantize(kind)
    assert dry_run(on_meta, condition, plan, Method()) == after
    assert {name: t.dtype for name, t in on_meta.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }


@families
@kinds
@pytest.mark.parametrize("name", ["model", "sequential"])
def test_quantised_weights_visit_the_device(row: FamilyRow, kind: Quantization, name: OffloadName) -> None:
    model = quantized(row, kind, torch.bfloat16).set_cache_dtype("int8")
    expected = record(model, row)["latent"]
    model.enable_offload(name, torch.device("cpu"))
    assert torch.equal(record(model, row)["latent"], expected)


@kinds
def test_quantised_weights_keep_their_precision(kind: Quantization) -> None:
    model = make_var().to(dtype=torch.bfloat16).quantize(kind)
    before = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert model.to(dtype=torch.bfloat16).quantize(kind).to("cpu").precision == Precision(
        torch.bfloat16, tokenizer=torch.bfloat16, quantization=kind
    )
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == before
    other: Quantization = "fp8" if kind == "int8" else "int8"
    for change in (model.float, lambda: model.to(dtype=torch.float16), lambda: model.quantize(other)):
        with pytest.raises(UsageError, match=f"stored in {kind} for torch.bfloat16, which cannot be changed; load"):
            change()


def test_a_quantised_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stored in int8; load the model without quantization"):
        save_model(tmp_path / "model", "tiny", make_var().quantize("int8"), None, None, {})
    assert not (tmp_path / "model").exists()


def test_unknown_kinds_and_devices_without_fp8_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="quantization='int4': must be one of fp8, int8"):
        make_var().quantize("int4")  # type: ignore[arg-type]
    model = make_var().quantize("fp8")
    monkeypatch.setattr("stepvar.models.model.device_of", lambda name, device: torch.device(device))
    with pytest.raises(UsageError, match=r"needs an NVIDIA GPU of compute capability 9.0 .*, mps has none; use 'int8'"):
        model.to("mps")
    monkeypatch.setattr(ops, "compute_capability", lambda device: (8, 0))
    with pytest.raises(UsageError, match=r"9.0 \(Hopper\) or higher, this one has 8.0; use 'int8'"):
        model.to(device=torch.device("cuda"))
    check_quantization("int8", torch.device("cuda"))
    monkeypatch.setattr(ops, "compute_capability", lambda device: (9, 0))
    check_quantization("fp8", torch.device("cuda"))


def test_int8_weights_lie_within_half_a_step() -> None:
    plain = nn.Linear(40, 24)
    layer = Int8Linear(plain)
    step = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    assert ((layer.dequantized() - plain.weight).abs() <= 0.5001 * step).all()
    x = torch.randn(3, 5, 40)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.dequantized(), plain.bias))
    assert "quantization=int8" in repr(layer)


@pytest.mark.parametrize("layer", [Int8Linear, FP8Linear])
def test_a_layer_answers_in_the_format_of_the_weight_it_replaces(layer: type[QuantizedLinear]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = nn.Linear(32, 16).to(dtype).requires_grad_(False)
        x = torch.randn(2, 3, 32)
        got = layer(plain)(x)
        assert got.dtype == dtype and relative(got, plain(x.to(dtype))) < 0.06
        silent = layer(nn.Linear(32, 16, bias=False).to(dtype))
        assert not silent(torch.zeros(1, 32)).any()
