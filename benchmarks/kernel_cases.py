"""The fused operations at sizes of the released models, each with its formula in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels import decoder, fp8, ops
from stepvar.kernels.norm import HeadsNorm, Norm, Rotation
from stepvar.kernels.random import exponential
from stepvar.kernels.sparse_attention import KeyLists, attend_to_lists
from stepvar.models.hart.config import RELEASED as HART
from stepvar.models.infinity.config import CONFIGS as INFINITY
from stepvar.models.infinity_star.config import CONFIGS as STAR
from stepvar.models.switti.config import CONFIGS as SWITTI
from stepvar.utils.hashing import MASK

HALF = torch.bfloat16
FULL = torch.float32

Outcome = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One function at the size of one model.

    Attributes:
        run: the function, on whichever path is chosen.
        reference: its formula in float64.
        moved: bytes that it must read and write.
        rounds_to: the coarsest type among its outcomes.
    """

    name: str
    run: Callable[[], Outcome]
    reference: Callable[[], Outcome]
    moved: int
    rounds_to: torch.dtype


class Inputs:
    """Random inputs on a device; with ``small`` all counts of tokens and pixels shrink, for machines without a GPU."""

    def __init__(self, device: torch.device, small: bool) -> None:
        self.device, self.small = device, small
        self.generator = torch.Generator(device).manual_seed(0)

    def tokens(self, side: int) -> int:
        """Tokens of a square map of a given side."""
        return (4 if self.small else side) ** 2

    def random(self, *shape: int, dtype: torch.dtype = FULL) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype)

    def image(self, channels: int, side: int) -> Tensor:
        """An image (1, C, side, side) in channels_last whose mean is far from zero."""
        side = max(4, side // 64) if self.small else side
        x = 3 + self.random(1, channels, side, side, dtype=HALF)
        return x.to(memory_format=torch.channels_last)


def size(*outcomes: Outcome) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in flattened(outcomes))


def flattened(outcome: Outcome) -> list[Tensor]:
    """The tensors of an outcome; rows in fp8 as the numbers that they stand for."""
    if isinstance(outcome, fp8.Quantised):
        return [outcome.dequantise()]
    if isinstance(outcome, Tensor):
        return [outcome]
    return [tensor for part in outcome if part is not None for tensor in flattened(part)]


def normed(x: Tensor, norm: Norm) -> Tensor:
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    x = x if norm.weight is None else x * norm.weight.double()
    x = x if norm.bias is None else x + norm.bias.double()
    return x if norm.scale is None or norm.shift is None else x * (1 + norm.scale.double()) + norm.shift.double()


def norm_cases(given: Inputs) -> Iterator[Case]:
    def case(name: str, side: int, width: int, kind: str) -> Case:
        tokens = given.tokens(side)
        x, update = given.random(2, tokens, width), given.random(2, tokens, width, dtype=HALF)
        gate, scale, shift = given.random(2, 3, width).unsqueeze(2).unbind(1)
        weight, bias = given.random(2, width)
        norm = {
            "layer": Norm("layer", scale=scale, shift=shift),
            "affine": Norm("layer", weight=weight, bias=bias),
            "rms": Norm("rms", weight=weight),
            "rms modulated": Norm("rms", weight=weight, scale=scale, shift=shift),
        }.get(kind)

        def reference() -> Outcome:
            total = x.double() + gate.double() * update.double()
            return total if norm is None else (total, normed(total, norm))

        if norm is None:
            return Case(name, lambda: ops.add_gated(x, update, gate), reference, size(x, x, update), FULL)
        moved = size(x, x, update, update)
        return Case(name, lambda: ops.add_norm(x, update, gate, norm, HALF), reference, moved, HALF)

    yield case("add_layer_norm, Infinity-2B", 64, INFINITY["2b"].width, "layer")
    yield case("add_layer_norm, Infinity-2B, 16x16", 16, INFINITY["2b"].width, "layer")
    yield case("add_layer_norm, Infinity-8B", 64, INFINITY["8b"].width, "layer")
    yield case("add_affine_layer_norm, Infinity-2B", 64, INFINITY["2b"].width, "affine")
    yield case("add_rms_norm, HART", 64, HART.width, "rms modulated")
    yield case("add_rms_norm, InfinityStar", 128, STAR["480p"].width, "rms")
    yield case("add_gated, Infinity-2B", 64, INFINITY["2b"].width, "none")
    yield from norms_alone(given)


def norms_alone(given: Inputs) -> Iterator[Case]:
    """Switti's: of queries, a part of the joint projection, and of what a sub-layer adds."""
    width = SWITTI["2.5b-1024"].width
    qkv = given.random(2, given.tokens(64), 3 * width, dtype=HALF)
    weight = given.random(width)
    x = qkv[..., :width]
    for name, norm, dtype in (
        ("layer_norm, Switti", Norm("layer"), HALF),
        ("rms_norm, Switti", Norm("rms", weight=weight), FULL),
    ):
        yield Case(
            name,
            partial(lambda norm, dtype: ops.add_norm(x, None, None, norm, dtype)[1], norm, dtype),
            partial(lambda norm: normed(x.double(), norm), norm),
            size(x) + x.numel() * dtype.itemsize,
            HALF,
        )


def rotated(x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
    """(R, H, N, D) by tables (N, D or D/2)."""
    a, b = x.chunk(2, -1) if halves else x.unflatten(-1, (-1, 2)).unbind(-1)
    if halves:
        cos_a, cos_b, sin_a, sin_b = *cos.chunk(2, -1), *sin.chunk(2, -1)
        return torch.cat([a * cos_a - b * sin_a, b * cos_b + a * sin_b], -1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def attention_cases(given: Inputs) -> Iterator[Case]:
    def case(name: str, side: int, heads: tuple[int, int], head_dim: int, kind: str) -> Case:
        tokens, halves = given.tokens(side), kind == "scaled"
        count, kv_count = heads
        widths = [count * head_dim, kv_count * head_dim, kv_count * head_dim]
        qkv = given.random(2, tokens, sum(widths), dtype=HALF)
        parts = qkv.split(widths, dim=-1)
        angles = given.random(tokens, head_dim if halves else head_dim // 2)
        cos, sin = angles.cos(), angles.sin()
        positions = torch.arange(tokens, device=given.device).expand(2, -1)
        keys, values = given.random(2, 2, kv_count, tokens + 8, head_dim, dtype=HALF)[:, :, :, 8:]
        scale = given.random(1, count, 1, 1).exp()
        q_weight, k_weight = given.random(2, head_dim)

        def run() -> Outcome:
            norm = {
                "unit": HeadsNorm("unit", q_scale=scale),
                "scaled": HeadsNorm("none", q_factor=0.3),
                "rms": HeadsNorm("rms", q_weight=q_weight, k_weight=k_weight),
            }[kind]
            rotation = Rotation(cos[None], sin[None]) if kind == "rms" else Rotation(cos, sin, positions, halves)
            q = ops.attention_inputs(parts, heads, norm, rotation, keys, values)
            return q, keys, values

        def reference() -> Outcome:
            q, k, v = (part.double().unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts)
            if kind == "rms":
                q, k = (normed(q, Norm("rms", weight=q_weight)), normed(k, Norm("rms", weight=k_weight)))
            elif kind == "scaled":
                q = 0.3 * q
            else:
                q, k = F.normalize(q, dim=-1) * scale.double(), F.normalize(k, dim=-1)
            turn = (cos.double(), sin.double(), halves)
            return rotated(q, *turn), rotated(k, *turn), v

        return Case(name, run, reference, 2 * size(qkv) + size(cos, sin, positions[:1]), HALF)

    for variant in ("2b", "8b"):
        config = INFINITY[variant]
        heads = (config.heads, config.heads)
        yield case(f"attention_inputs, Infinity-{variant.upper()}", 64, heads, config.head_dim, "unit")
    yield case("attention_inputs, HART", 64, (HART.heads, HART.heads), HART.width // HART.heads, "scaled")
    star = STAR["480p"]
    yield case("attention_inputs, InfinityStar", 128, (star.heads, star.kv_heads), star.head_dim, "rms")


def sparse_cases(given: Inputs) -> Iterator[Case]:
    config = INFINITY["2b"]
    tokens, group, block = given.tokens(40), 5 if given.small else 192, 4 if given.small else 128
    keys = 2 * tokens + 25
    q, k, v = (given.random(1, config.heads, count, config.head_dim) for count in (tokens, keys, keys))
    q, k, v = (5 * F.normalize(q, dim=-1)).to(HALF), F.normalize(k, dim=-1).to(HALF), v.to(HALF)

    def case(name: str, heads: int, group: int, counted: bool) -> Case:
        groups = -(-tokens // group)
        places = given.random(1, heads, groups, keys).argsort(dim=-1)[..., : keys // 3].int()
        listed = places.shape[-1]
        counts = torch.arange(groups, device=given.device, dtype=torch.int32) % listed + 1 if counted else None
        lists = KeyLists(places, group, counts, listed)

        def reference() -> Outcome:
            held = torch.ones(groups, listed, dtype=torch.bool, device=given.device)
            if counts is not None:
                held = torch.arange(listed, device=given.device) < counts.unsqueeze(1)
            seen = torch.zeros(1, heads, groups, keys, dtype=torch.bool, device=given.device)
            seen.scatter_(-1, places.long(), held.expand_as(places))
            mask = seen.repeat_interleave(group, dim=2)[:, :, :tokens]
            scores = (q.double() @ k.double().mT).masked_fill(~mask, -torch.inf)
            return scores.softmax(dim=-1) @ v.double()

        return Case(name, lambda: attend_to_lists(q, k, v, lists), reference, size(q, q, k, v), HALF)

    yield case("attend_to_lists, 2B at 40x40, chosen keys", config.heads, group, False)
    yield case("attend_to_lists, 2B at 40x40, blocks", 1, block, True)


def feed_forward_cases(given: Inputs) -> Iterator[Case]:
    config = INFINITY["2b"]
    x = given.random(2, given.tokens(64), config.width, dtype=HALF)
    weight = (given.random(config.ffn_width, config.width) / config.width**0.5).to(HALF)
    bias = given.random(config.ffn_width, dtype=HALF)

    yield Case(
        "linear_gelu, Infinity-2B",
        lambda: ops.linear_gelu(x, weight, bias),
        lambda: F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh"),
        size(x, weight) + size(x) * config.ffn_width // config.width,
        HALF,
    )
    for name, side, width in (("HART", 64, HART.ffn_width), ("InfinityStar", 128, STAR["480p"].ffn_width)):
        gate, up = given.random(2, 2, given.tokens(side), width, dtype=HALF)
        yield Case(
            f"swiglu, {name}",
            partial(ops.swiglu, gate, up),
            partial(lambda gate, up: F.silu(gate.double()) * up.double(), gate, up),
            size(gate, up, up),
            HALF,
        )


def pruning_cases(given: Inputs) -> Iterator[Case]:
    for name, side, width in (("Infinity-2B", 64, INFINITY["2b"].width), ("HART", 64, HART.width)):
        side = 4 if given.small else side
        features = given.random(1, side * side, width)

        def texture(features: Tensor = features, side: int = side) -> Tensor:
            maps = features.double().view(1, side, side, -1).permute(0, 3, 1, 2)
            low = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
            return (maps - low).square().sum(1).flatten(1)

        yield Case(
            f"texture_energy, {name}",
            partial(ops.texture_energy, features, 1, side, side),
            texture,
            size(features),
            FULL,
        )
    x = given.random(2, given.tokens(64), INFINITY["2b"].width)
    kept = torch.arange(0, x.shape[1], 2, device=given.device).expand(2, -1)
    source = torch.arange(x.shape[1], device=given.device).expand(2, -1) // 2
    values = x[:, ::2].contiguous()
    yield Case("gather_rows, 2B keeps half", lambda: ops.gather_rows(x, kept), lambda: x[:, ::2], size(x), FULL)
    yield Case(
        "gather_rows, 2B restores",
        lambda: ops.gather_rows(values, source),
        lambda: values.repeat_interleave(2, dim=1),
        size(x, values),
        FULL,
    )


def decoder_cases(given: Inputs) -> Iterator[Case]:
    for name, channels, side in (("1024x1024", 128, 1024), ("128x128", 512, 128), ("HART 1024x1024", 160, 1024)):
        x, residual = given.image(channels, side), given.image(channels, side)
        weight, bias = given.random(2, channels, dtype=HALF)

        def norm(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            groups = x.double().unflatten(1, (32, -1)).flatten(2)
            variance, mean = torch.var_mean(groups, 2, keepdim=True, correction=0)
            wide = ((groups - mean) / (variance + 1e-6).sqrt()).view(x.shape)
            return F.silu(wide * weight.double()[:, None, None] + bias.double()[:, None, None])

        def normalised(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return decoder.apply_group_norm(x, decoder.group_moments(x, 32), weight, bias, 1e-6)

        yield Case(f"group norm with SiLU, {channels} at {name}", normalised, norm, 3 * size(x), HALF)

        def sums(x: Tensor = x, bias: Tensor = bias, residual: Tensor = residual) -> Outcome:
            total = x.double() + bias.double()[:, None, None] + residual.double()
            variance, mean = torch.var_mean(total.unflatten(1, (32, -1)).flatten(2), 2, correction=0)
            return total, mean, variance

        def added(x: Tensor = x, bias: Tensor = bias, residual: Tensor = residual) -> Outcome:
            total, moments = decoder.add_bias_residual(x, bias, residual, 32)
            return total, *moments

        yield Case(f"add_bias_residual, {channels} at {name}", added, sums, 3 * size(x), HALF)
    x = given.image(256, 512)
    yield Case(
        "upsample_nearest2x, 256 at 512x512",
        lambda: decoder.upsample_nearest2x(x),
        lambda: F.interpolate(x.double(), scale_factor=2.0),
        5 * size(x),
        HALF,
    )


def fp8_cases(given: Inputs) -> Iterator[Case]:
    config = INFINITY["2b"]
    x = given.random(2, given.tokens(64), config.width)
    hidden = given.random(2, given.tokens(64), config.ffn_width, dtype=HALF)
    norm = Norm("layer")
    yield Case(
        "add_norm_quantised, Infinity-2B",
        lambda: fp8.add_norm_quantised(x, None, None, norm),
        lambda: (x.double(), normed(x.double(), norm)),
        size(x) + x.numel(),
        fp8.FP8,
    )
    yield Case(
        "gelu_quantised, Infinity-2B",
        lambda: fp8.gelu_quantised(hidden),
        lambda: F.gelu(hidden.double(), approximate="tanh"),
        size(hidden) + hidden.numel(),
        fp8.FP8,
    )
    x = given.random(2, given.tokens(64), config.width, dtype=HALF)
    weight = (given.random(config.ffn_width, config.width) / config.width**0.5).to(HALF)
    bias = given.random(config.ffn_width, dtype=HALF)
    with ops.kernels("plain"):
        rows, quantised = fp8.quantise_rows(x), fp8.quantise_rows(weight)

    def product() -> Tensor:
        """In fp8, to compare with the same product in bfloat16."""
        return F.linear(x, weight, bias) if ops.KERNELS.get() == "plain" else fp8.fp8_linear(rows, quantised, bias)

    yield Case(
        "fp8_linear, Infinity-2B (plain: bfloat16)",
        product,
        lambda: F.linear(x.double(), weight.double(), bias.double()),
        x.numel() + weight.numel() + size(hidden),
        fp8.FP8,
    )


def random_cases(given: Inputs) -> Iterator[Case]:
    """Random numbers of the bits of an image's last scale, and of a batch of small ones."""

    def uniform(words: Tensor, count: int) -> Tensor:
        place = torch.arange(count, device=words.device)
        x, keys = (place + words[:, :1].long()) & MASK, words[:, 1:].long() & MASK
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ x >> shift) * factor) & MASK
            x = x ^ keys if shift == 16 else x
        return ((x ^ x >> 16) >> 9) + 0.5

    for name, rows, side in (("exponential, Infinity-2B", 1, 64), ("exponential, 32 small images", 32, 32)):
        words = torch.randint(-(2**31), 2**31, (rows, 2), generator=given.generator, device=given.device)
        count = given.tokens(side) * 64
        yield Case(
            name,
            partial(exponential, words.int(), count),
            partial(lambda words, count: -torch.log(uniform(words, count).double() * 2.0**-23), words, count),
            4 * rows * count,
            FULL,
        )


GROUPS = (
    norm_cases,
    attention_cases,
    sparse_cases,
    feed_forward_cases,
    pruning_cases,
    decoder_cases,
    fp8_cases,
    random_cases,
)
