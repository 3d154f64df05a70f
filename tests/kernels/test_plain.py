"""The plain path of every function is, to the bit, the arithmetic that results are pinned to."""

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels import ops
from stepvar.kernels.norm import HeadsNorm, Norm, Rotation

DTYPES = [torch.float32, torch.bfloat16]
ROWS, TOKENS, WIDTH = 3, 5, 48


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def modulation(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Gate, scale and shift (R, 1, C), as views of one tensor."""
    return random(ROWS, 3, WIDTH, seed=9, dtype=dtype).unsqueeze(2).unbind(1)


@pytest.mark.parametrize("blocks", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
def test_residual_and_modulated_layer_norm(blocks: torch.dtype, gated: bool) -> None:
    x, update = random(ROWS, TOKENS, WIDTH), random(ROWS, TOKENS, WIDTH, seed=1, dtype=blocks)
    gate, scale, shift = modulation()
    total, normed = ops.add_norm(x, update, gate if gated else None, Norm("layer", scale=scale, shift=shift), blocks)
    expected = x + (gate * update if gated else update.to(x.dtype))
    normed_expected = torch.addcmul(shift, F.layer_norm(expected, (WIDTH,), eps=1e-6), 1 + scale).to(blocks)
    assert torch.equal(total, expected) and torch.equal(normed, normed_expected)
    assert torch.equal(ops.add_gated(x, update, gate if gated else None), expected)
    assert normed.dtype == blocks


def test_without_an_update_the_stream_is_handed_on() -> None:
    x = random(ROWS, TOKENS, WIDTH)
    weight, bias = random(WIDTH, seed=2), random(WIDTH, seed=3)
    total, normed = ops.add_norm(x, None, None, Norm("layer", 1e-6, weight, bias), torch.float32)
    assert total is x
    assert torch.equal(normed, F.layer_norm(x, (WIDTH,), weight, bias, 1e-6))
    assert torch.equal(
        ops.add_norm(x, None, None, Norm("layer"), torch.float32)[1], F.layer_norm(x, (WIDTH,), eps=1e-6)
    )


@pytest.mark.parametrize("residual", DTYPES)
@pytest.mark.parametrize("modulated", [True, False])
def test_residual_and_rms_norm(residual: torch.dtype, modulated: bool) -> None:
    x, update = random(ROWS, TOKENS, WIDTH, dtype=residual), random(ROWS, TOKENS, WIDTH, seed=1, dtype=torch.bfloat16)
    weight = random(WIDTH, seed=2, dtype=residual)
    gate, scale, shift = modulation(residual) if modulated else (None, None, None)
    total, normed = ops.add_norm(x, update, gate, Norm("rms", 1e-6, weight, scale=scale, shift=shift), torch.bfloat16)
    expected = x + (update.to(residual) if gate is None else gate * update)
    wide = expected.float()
    inner = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(residual) * weight
    if scale is not None and shift is not None:
        inner = torch.addcmul(shift, inner, 1 + scale)
    assert torch.equal(total, expected) and torch.equal(normed, inner.to(torch.bfloat16))


HEADS, HEAD_DIM, CELLS = 3, 16, 11


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def caches(count: int = HEADS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Views behind the first two tokens of a cache with room for one more."""
    buffers = torch.full((2, ROWS, count, TOKENS + 3, HEAD_DIM), math.nan, dtype=dtype)
    return buffers[0, :, :, 2:-1], buffers[1, :, :, 2:-1]


def attention_inputs(qkv: Tensor, norm: HeadsNorm, rotation: Rotation, keys: Tensor, values: Tensor) -> Tensor:
    return ops.attention_inputs(qkv.chunk(3, dim=-1), (HEADS, HEADS), norm, rotation, keys, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", ["none", "table", "rows"])
def test_unit_length_and_rotary(dtype: torch.dtype, rotary: str) -> None:
    """Infinity and VAR."""
    qkv = random(ROWS, TOKENS, 3 * HEADS * HEAD_DIM, dtype=dtype)
    scale = random(1, HEADS, 1, 1, seed=1).exp()
    cos, sin = random(CELLS, HEAD_DIM // 2, seed=2), random(CELLS, HEAD_DIM // 2, seed=3)
    positions = torch.tensor([[0, 3, 4, 8, 10], [1, 2, 3, 4, 5], [10, 9, 2, 1, 0]])
    q, k, v = (heads(part) for part in qkv.chunk(3, dim=-1))
    unit_q, unit_k = F.normalize(q.float(), dim=-1) * scale, F.normalize(k.float(), dim=-1)
    if rotary != "none":
        turn = (cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))
        unit_q, unit_k = neighbours(unit_q, *turn), neighbours(unit_k, *turn)
    given = {
        "none": (None, None, None),
        "table": (cos, sin, positions),
        "rows": (cos[positions], sin[positions], None),
    }[rotary]
    keys, values = caches(dtype=dtype)
    queries = attention_inputs(qkv, HeadsNorm("unit", q_scale=scale), Rotation(*given), keys, values)
    assert torch.equal(queries, unit_q.to(dtype)) and queries.dtype == dtype
    assert torch.equal(keys, unit_k.to(dtype)) and torch.equal(values, v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [True, False])
def test_rotary_of_halves(dtype: torch.dtype, unit: bool) -> None:
    """HART, which rounds between normalisation and rotation."""
    qkv = random(ROWS, TOKENS, 3 * HEADS * HEAD_DIM, dtype=dtype)
    scale, factor = random(1, HEADS, 1, 1, seed=1).exp(), 0.25 / math.sqrt(HEAD_DIM)
    cos, sin = random(ROWS, TOKENS, HEAD_DIM, seed=2), random(ROWS, TOKENS, HEAD_DIM, seed=3)
    q, k, v = (heads(part) for part in qkv.chunk(3, dim=-1))
    keys, values = caches(dtype=dtype)
    rotation = Rotation(cos, sin, halves=True)
    if unit:
        q, k = (F.normalize(q.float(), dim=-1) * scale).to(dtype), F.normalize(k.float(), dim=-1).to(dtype)
        queries = attention_inputs(qkv, HeadsNorm("unit", q_scale=scale), rotation, keys, values)
    else:
        q = q * factor
        queries = attention_inputs(qkv, HeadsNorm("none", q_factor=factor), rotation, keys, values)
    q, k = (halves(part.float(), cos.unsqueeze(1), sin.unsqueeze(1)).to(dtype) for part in (q, k))
    assert torch.equal(queries, q) and torch.equal(keys, k) and torch.equal(values, v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_per_head_and_rotary(dtype: torch.dtype) -> None:
    """InfinityStar: fewer heads of keys than of queries, weights in float32."""
    q, k, v = (random(ROWS, TOKENS, n * HEAD_DIM, seed=n, dtype=dtype) for n in (6, 2, 2))
    q_weight, k_weight = random(HEAD_DIM, seed=4), random(HEAD_DIM, seed=5)
    cos, sin = random(1, TOKENS, HEAD_DIM // 2, seed=2), random(1, TOKENS, HEAD_DIM // 2, seed=3)

    def expected(x: Tensor, count: int, weight: Tensor) -> Tensor:
        wide = heads(x, count).float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(dtype) * weight
        return neighbours(normed, cos.unsqueeze(1), sin.unsqueeze(1)).to(dtype)

    keys, values = caches(2, dtype)
    norm = HeadsNorm("rms", 1e-6, q_weight, k_weight)
    queries = ops.attention_inputs((q, k, v), (6, 2), norm, Rotation(cos, sin), keys, values)
    assert torch.equal(queries, expected(q, 6, q_weight)) and queries.dtype == dtype
    assert torch.equal(keys, expected(k, 2, k_weight)) and torch.equal(values, heads(v, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_feed_forward(dtype: torch.dtype) -> None:
    x, weight = random(ROWS, TOKENS, WIDTH, dtype=dtype), random(32, WIDTH, seed=1, dtype=dtype)
    bias = random(32, seed=2, dtype=dtype)
    assert torch.equal(ops.linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias), approximate="tanh"))
    gate, up = random(ROWS, TOKENS, 64, dtype=dtype).chunk(2, dim=-1)
    assert torch.equal(ops.swiglu(gate, up), F.silu(gate) * up)


def test_texture_energy() -> None:
    features = random(2, 3 * 4 * 5, 7)
    maps = features.view(6, 4, 5, 7).permute(0, 3, 1, 2)
    high = maps - F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    assert torch.equal(ops.texture_energy(features, 3, 4, 5), high.square().sum(dim=1).view(2, 60))


def test_gather_rows_picks_and_restores() -> None:
    features, kept = random(2, 6, 7), torch.tensor([[0, 3], [1, 5]])
    values = ops.gather_rows(features, kept)
    assert torch.equal(values, torch.stack([features[0, [0, 3]], features[1, [1, 5]]]))
    source = torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert torch.equal(ops.gather_rows(values, source)[1], features[1, [5, 5, 1]])


def test_the_choice_belongs_to_the_thread() -> None:
    seen = []
    with ops.kernels("plain"):
        assert not ops.is_enabled(torch.zeros(1))
        worker = threading.Thread(target=lambda: seen.append(ops.is_enabled(torch.zeros(1))))
        worker.start()
        worker.join()
        with ops.kernels("auto"):
            assert ops.is_enabled(torch.zeros(1))
        assert not ops.is_enabled(torch.zeros(1))
    assert seen == [True] and ops.is_enabled(torch.zeros(1))


def test_what_is_differentiated_takes_the_plain_path() -> None:
    weight = torch.zeros(1, requires_grad=True)
    assert not ops.is_enabled(torch.zeros(1), weight)
    with torch.no_grad():
        assert ops.is_enabled(torch.zeros(1), weight)


def test_no_triton_on_a_cpu_or_on_meta() -> None:
    assert not ops.use_triton(torch.zeros(1)) and not ops.use_triton(torch.zeros(1, device="meta"), None)


def test_a_dry_run_on_meta_gives_shapes() -> None:
    x = torch.empty(ROWS, TOKENS, WIDTH, device="meta")
    total, normed = ops.add_norm(x, x, None, Norm("layer"), torch.bfloat16)
    assert total.shape == normed.shape == x.shape and normed.dtype == torch.bfloat16
    assert ops.linear_gelu(x, torch.empty(8, WIDTH, device="meta"), torch.empty(8, device="meta")).shape[-1] == 8
    assert ops.texture_energy(x, 1, 1, TOKENS).shape == (ROWS, TOKENS)
