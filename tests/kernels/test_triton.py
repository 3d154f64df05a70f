"""The Triton kernels against the plain paths at small odd sizes, on a GPU or on the CPU in Triton's interpreter.

Whether kernels are interpreted is settled when they are first imported, so without a GPU these tests run in a process
of their own, which :func:`test_in_the_interpreter` starts.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.kernels import decoder, fp8, ops
from stepvar.kernels.norm import HeadsNorm, Norm, Rotation
from stepvar.kernels.random import exponential
from stepvar.kernels.sparse_attention import KeyLists, attend_to_lists, attend_with_mass

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
runs_kernels = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="runs in the process of test_in_the_interpreter"
)

HALF = torch.bfloat16


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="the kernels run in this process")
def test_in_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "--no-cov",
        str(Path(__file__)),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout and "failed" not in done.stdout


@pytest.fixture(autouse=True)
def default_device() -> Iterator[None]:
    with DEVICE:
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE, dtype)


def flattened(outcome: Tensor | tuple[Any, ...]) -> list[Tensor]:
    return [outcome] if isinstance(outcome, Tensor) else [tensor for part in outcome for tensor in flattened(part)]


def compare(function: Callable[..., Tensor | tuple[Any, ...]], *arguments: object, bound: float | None = None) -> None:
    """A kernel's results against the plain ones, to within the rounding of their type."""
    tensors = [given for given in arguments if isinstance(given, Tensor)]
    assert ops.use_triton(*tensors, torch.zeros(1))
    fused = flattened(function(*arguments))
    with ops.kernels("plain"):
        plain = flattened(function(*arguments))
    for got, expected in zip(fused, plain, strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        # Two units in the last place of bfloat16, in which the plain path may round in between.
        half = any(tensor.dtype == HALF for tensor in (expected, *tensors))
        error = bound or (2**-6 if half else 2e-5)
        torch.testing.assert_close(got, expected, rtol=error, atol=error)


SHAPES = [(3, 5, 96), (1, 1, 2048), (2, 3, 1152), (3, 1, 40)]


@runs_kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [torch.float32, HALF])
def test_norms(shape: tuple[int, int, int], residual: torch.dtype) -> None:
    x, update = 3 + random(*shape, dtype=residual), random(*shape, seed=1, dtype=HALF)
    gate, scale, shift = random(shape[0], 3, shape[2], seed=2, dtype=residual).unsqueeze(2).unbind(1)
    weight, bias = random(2, shape[2], seed=3, dtype=residual)
    # The plain path rounds a stream in bfloat16 after every step.
    bound = 2**-4 if residual == HALF else None
    for out in (torch.float32, HALF):
        compare(ops.add_norm, x, update, gate, Norm("layer", scale=scale, shift=shift), out, bound=bound)
        compare(ops.add_norm, x, None, None, Norm("layer"), out, bound=bound)
        compare(ops.add_norm, x, update, None, Norm("layer", 1e-5, weight, bias), out, bound=bound)
        compare(ops.add_norm, x, update, gate, Norm("rms", 1e-6, weight, scale=scale, shift=shift), out, bound=bound)
        compare(ops.add_norm, x, None, None, Norm("rms", 1e-6, weight), out, bound=bound)
    compare(ops.add_gated, x, update, gate, bound=bound)


@runs_kernels
def test_a_modulation_of_one_row_serves_all() -> None:
    x, update = random(3, 4, 40), random(3, 4, 40, seed=1)
    gate, scale, shift = random(1, 3, 40, seed=2).unsqueeze(2).unbind(1)
    compare(ops.add_norm, x, update, gate, Norm("layer", scale=scale, shift=shift), torch.float32)


@runs_kernels
def test_the_stream_is_written_in_place_only_when_told() -> None:
    x, update = random(2, 3, 40), random(2, 3, 40, seed=1)
    before = x.clone()
    total, _ = ops.add_norm(x, update, None, Norm("layer"), HALF)
    assert torch.equal(x, before)
    again, _ = ops.add_norm(x, update, None, Norm("layer"), HALF, inplace=True)
    assert again.data_ptr() == x.data_ptr() and torch.equal(x, total)
    assert ops.add_gated(x, update, inplace=True).data_ptr() == x.data_ptr()


@runs_kernels
def test_layer_norm_far_from_zero() -> None:
    """The variance is that of what is left after the mean: no digits cancel."""
    x = 1000 + random(2, 2, 64)
    _, normed = ops.add_norm(x, None, None, Norm("layer"), torch.float32)
    wide = x.double() - x.double().mean(-1, keepdim=True)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normed.double(), expected, rtol=1e-3, atol=1e-3)


@runs_kernels
@pytest.mark.parametrize(("heads", "head_dim", "dtype"), [(3, 32, torch.float32), (2, 96, HALF)])
@pytest.mark.parametrize("halves", [False, True])
def test_attention_inputs(heads: int, head_dim: int, dtype: torch.dtype, halves: bool) -> None:
    rows, tokens, cells = 2, 4, 9
    qkv = random(rows, tokens, 3 * heads * head_dim, dtype=dtype)
    columns = head_dim if halves else head_dim // 2
    cos, sin = random(2, cells, columns, seed=2)
    pruned = torch.tensor([[0, 3, 4, 8], [1, 2, 3, 4]])
    dense = torch.arange(tokens).expand(rows, -1)
    scale = random(1, heads, 1, 1, seed=3).exp()

    def run(unit: bool, rotary: tuple[Tensor | None, Tensor | None, Tensor | None]) -> tuple[Tensor, ...]:
        buffers = torch.full((2, rows, heads, tokens + 3, head_dim), math.nan, dtype=dtype)
        keys, values = (buffer[:, :, 2:-1] for buffer in buffers)
        norm = HeadsNorm("unit", q_scale=scale) if unit else HeadsNorm("none", q_factor=0.3)
        parts, rotation = qkv.chunk(3, dim=-1), Rotation(*rotary, halves)
        q = ops.attention_inputs(parts, (heads, heads), norm, rotation, keys, values)
        assert buffers[:, :, :, [0, 1, -1]].isnan().all()  # nothing is written beside the views
        return q, keys, values

    compare(run, False, (cos, sin, pruned))
    for rotary in (
        (None, None, None),
        (cos, sin, pruned),
        (cos, sin, dense),
        (cos[pruned], sin[pruned], None),
        (cos[None, :tokens], sin[None, :tokens], None),
    ):
        compare(run, True, rotary)


@runs_kernels
def test_a_zero_query_stays_zero() -> None:
    qkv = torch.zeros(1, 1, 3 * 32)
    keys, values = torch.ones(2, 1, 1, 1, 32)
    norm = HeadsNorm("unit", q_scale=torch.ones(1))
    assert not ops.attention_inputs(qkv.chunk(3, dim=-1), (1, 1), norm, Rotation(), keys, values).any()
    assert not keys.any()


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 32), (4, 1, 16)])
def test_grouped_heads(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    rows, tokens = 2, 5
    q = random(rows, tokens, heads * head_dim, dtype=dtype)
    k, v = random(2, rows, tokens, kv_heads * head_dim, seed=1, dtype=dtype)
    q_weight, k_weight = random(2, head_dim, seed=2)

    def run(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        keys, values = torch.zeros(2, rows, kv_heads, tokens, head_dim, dtype=dtype)
        norm = HeadsNorm("rms", 1e-6, q_weight, k_weight)
        queries = ops.attention_inputs((q, k, v), (heads, kv_heads), norm, Rotation(cos, sin), keys, values)
        return queries, keys, values

    for shared in (1, rows):
        compare(run, *random(2, shared, tokens, head_dim // 2, seed=3))


@runs_kernels
@pytest.mark.parametrize("width", [40, 3000])
def test_swiglu(width: int) -> None:
    gate, up = random(2, 3, 2 * width, dtype=HALF).chunk(2, dim=-1)
    compare(ops.swiglu, gate, up)
    compare(ops.swiglu, gate.contiguous(), up)


@runs_kernels
@pytest.mark.parametrize(("grid", "width"), [((1, 1, 1), 70), ((1, 1, 4), 7), ((2, 5, 3), 70), ((1, 17, 18), 7)])
def test_texture_energy(grid: tuple[int, int, int], width: int) -> None:
    features = random(2, math.prod(grid), width)
    compare(ops.texture_energy, features, *grid)
    constant = torch.full((1, math.prod(grid), width), 1.5)
    assert not ops.texture_energy(constant, *grid).any()


@runs_kernels
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 5001)])
def test_random_numbers(rows: int, count: int) -> None:
    words = torch.randint(-(2**31), 2**31, (rows, 2), generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    words = words.int().to(DEVICE)
    assert ops.use_triton(torch.zeros(1))
    fused = exponential(words, count)
    with ops.kernels("plain"):
        plain = exponential(words, count)
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)  # also where the logarithm is near 0


@runs_kernels
def test_a_broken_token_is_seen() -> None:
    features = random(1, 16, 8)
    features[0, 5, 3] = math.nan
    assert ops.texture_energy(features, 1, 4, 4).isnan().sum() == 9


@runs_kernels
@pytest.mark.parametrize("width", [7, 96, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_gather_rows(width: int, dtype: torch.dtype) -> None:
    features = random(3, 6, width, dtype=dtype)
    kept = torch.tensor([[0, 3], [1, 5], [4, 4]])
    for source, index in ((features, kept), (features[:1].expand(3, -1, -1), kept), (features, kept[:1].expand(3, -1))):
        got = ops.gather_rows(source, index)
        with ops.kernels("plain"):
            assert torch.equal(got, ops.gather_rows(source, index))


@runs_kernels
def test_what_no_kernel_supports_takes_the_plain_path() -> None:
    x = random(1, 2, 8193)
    assert torch.equal(
        ops.add_norm(x, None, None, Norm("layer"), torch.float32)[1],
        torch.nn.functional.layer_norm(x, (8193,), eps=1e-6),
    )
    assert not ops.use_triton(random(1).double()) and not ops.use_triton(random(0))


def channels_last(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(*shape, seed=seed, dtype=dtype).contiguous(memory_format=torch.channels_last)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("shape", "groups"), [((2, 32, 5, 7), 8), ((1, 160, 9, 33), 32), ((3, 8, 1, 1), 2)])
def test_maps_of_the_decoder(shape: tuple[int, int, int, int], groups: int, dtype: torch.dtype) -> None:
    x, residual = channels_last(*shape, dtype=dtype), channels_last(*shape, seed=1, dtype=dtype)
    weight, bias, conv_bias = random(3, shape[1], seed=2, dtype=dtype)
    bound = 2**-5 if dtype == HALF else 2e-5
    for shift in (None, conv_bias):
        compare(decoder.group_moments, x, groups, shift)
        moments = decoder.group_moments(x, groups, shift)

        def norm(x: Tensor, silu: bool, moments: decoder.Moments = moments, shift: Tensor | None = shift) -> Tensor:
            return decoder.apply_group_norm(x, moments, weight, bias, 1e-6, silu=silu, conv_bias=shift)

        compare(norm, x, True, bound=bound)
        compare(norm, x, False, bound=bound)
    for added in (None, residual):
        compare(decoder.add_bias_residual, x, conv_bias, added, groups, bound=bound)
    compare(decoder.upsample_nearest2x, x)


@runs_kernels
def test_group_norm_of_a_map_far_from_zero() -> None:
    """The variance is that of what is left after the mean, over several programs and the last one's short end."""
    x = channels_last(2, 64, 67, 41) + 1000
    weight, bias = random(2, 64, seed=1)
    wide = x.double().unflatten(1, (8, -1)).flatten(2)
    variance, mean = torch.var_mean(wide, 2, correction=0)
    moments = decoder.group_moments(x, 8)
    torch.testing.assert_close(moments[0].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(moments[1].double(), variance, rtol=1e-5, atol=0)
    normed = ((wide - mean[..., None]) / (variance[..., None] + 1e-6).sqrt()).view(x.shape)
    expected = torch.nn.functional.silu(normed * weight.double()[:, None, None] + bias.double()[:, None, None])
    got = decoder.apply_group_norm(x, moments, weight, bias, 1e-6)
    # The numbers themselves have 6e-5 left of their digits.
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


@runs_kernels
def test_maps_in_rows_take_the_plain_path() -> None:
    x = random(1, 8, 4, 4)
    assert not decoder.use_fused_maps(x) and decoder.use_fused_maps(channels_last(1, 8, 4, 4))
    weight, bias = random(2, 8)

    def norm() -> Tensor:
        return decoder.apply_group_norm(x, decoder.group_moments(x, 2), weight, bias, 1e-6, silu=False)

    with ops.kernels("plain"):
        plain = norm()
    assert torch.equal(norm(), plain)


@runs_kernels
@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("counted", [False, True])
def test_attention_to_lists_of_keys(head_dim: int, counted: bool) -> None:
    """Groups that do not fill a program, the last one short, in part of a cache, lists for all heads or for each."""
    rows, heads, tokens, keys, group = 2, 3, 90, 100, 70
    half = torch.float16  # the interpreter multiplies no matrices in bfloat16
    q = random(rows, tokens, heads, head_dim, dtype=half).transpose(1, 2)
    k, v = random(2, rows, heads, keys + 9, head_dim, seed=1, dtype=half)[..., :keys, :]
    places = random(1 if counted else rows, 1 if counted else heads, 2, keys, seed=2).argsort(-1)[..., :67].int()
    counts = torch.tensor([67, 1], dtype=torch.int32) if counted else None
    lists = KeyLists(places, group, counts, 67)
    got = attend_to_lists(q, k, v, lists)
    with ops.kernels("plain"):
        expected = attend_to_lists(q.float(), k.float(), v.float(), lists)
    torch.testing.assert_close(got.float(), expected, atol=2e-3, rtol=2e-3)
    assert got.dtype == half and not torch.equal(got.float(), expected)


@runs_kernels
@pytest.mark.parametrize(("head_dim", "group", "queries", "keys"), [(64, 70, 130, 150), (24, 192, 65, 66)])
def test_attention_with_the_mass_of_each_key(head_dim: int, group: int, queries: int, keys: int) -> None:
    half = torch.float16  # the interpreter multiplies no matrices in bfloat16
    q = 3 * random(2, queries, 3, head_dim, dtype=half).transpose(1, 2)
    k, v = random(2, 2, 3, keys + 9, head_dim, seed=1, dtype=half)[..., 9:, :]
    got, mass = attend_with_mass(q, k, v, group)
    with ops.kernels("plain"):
        expected, sums = attend_with_mass(q.float(), k.float(), v.float(), group)
    torch.testing.assert_close(got.float(), expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(mass, sums, atol=2e-3, rtol=2e-3)
    assert got.dtype == half and mass.dtype == torch.float32 and not torch.equal(mass, sums)
    torch.testing.assert_close(mass.sum(dim=(2, 3)), torch.full((2, 3), float(queries)), rtol=1e-3, atol=0)


def check_quantised(got: fp8.Quantised, expected: fp8.Quantised) -> None:
    """Equal scales, and values at most one step of fp8 apart.

    The interpreter cuts small numbers off and halves some that it should round up to a power of two.
    """
    torch.testing.assert_close(got.scale, expected.scale, rtol=2**-7, atol=0)
    assert got.values.dtype == fp8.FP8 and got.values.shape == expected.values.shape
    values, reference = got.values.float(), expected.values.float()
    close = (values - reference).abs() <= reference.abs() * 2**-3 + 2**-6
    if INTERPRETED:
        counted = (reference.abs() > 0.1) & (reference.abs().log2().frac() != 0)
        assert counted.float().mean() > 0.5 and close[counted].float().mean() > 0.99
    else:
        assert close.all()


@runs_kernels
@pytest.mark.parametrize("width", [96, 2048])
def test_quantised_rows(width: int) -> None:
    x, up = random(2, 3, width, dtype=HALF), random(2, 3, width, seed=1, dtype=HALF)
    x[0, 1] = 0
    norm = Norm("layer")
    got = [fp8.quantise_rows(x), fp8.gelu_quantised(x), fp8.swiglu_quantised(x, up)]
    total, normed = fp8.add_norm_quantised(x.float(), up, None, norm)
    with ops.kernels("plain"):
        expected = [fp8.quantise_rows(x), fp8.gelu_quantised(x), fp8.swiglu_quantised(x, up)]
        total_expected, normed_expected = fp8.add_norm_quantised(x.float(), up, None, norm)
    assert torch.equal(total, total_expected)
    for pair in zip([*got, normed], [*expected, normed_expected], strict=True):
        check_quantised(*pair)
    assert not got[0].values[0, 1].float().any()
