"""The Triton kernels on whole token maps and images; imported only where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepvar.kernels.triton_ops import on_device

TILE = 4096
"""Numbers that a program holds of an image at a time."""


@triton.jit
def _three_wide(x, y, col, c, h, w, C, inside):
    """The cells of row y at ``col``, and the sum of each with its neighbours to the left and right."""
    end = tl.where((y >= 0) & (y < h), w, 0)  # a row outside of the map has no cells
    place = x + (y * w + col)[:, None] * C + c[None, :]
    centre = tl.load(place, mask=inside & (col < end)[:, None], other=0.0).to(tl.float32)
    left = tl.load(place - C, mask=inside & ((col > 0) & (col <= end))[:, None], other=0.0).to(tl.float32)
    right = tl.load(place + C, mask=inside & (col + 1 < end)[:, None], other=0.0).to(tl.float32)
    return centre, left + centre + right


@triton.jit(do_not_specialize=["h", "w", "cells", "strips"])
def _texture(
    x,
    out,
    h,
    w,
    cells,
    strips,
    C: tl.constexpr,
    BC: tl.constexpr,
    BW: tl.constexpr,
    BH: tl.constexpr,
):
    """A block of columns and channels of a strip of rows, from top to bottom; each row of cells is read once."""
    frame = (tl.program_id(1) // strips).to(tl.int64)
    top = (tl.program_id(1) % strips) * BH
    col = tl.program_id(0) * BW + tl.arange(0, BW)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    inside = (c < C)[None, :]
    x += frame * h * w * C
    out += tl.program_id(2).to(tl.int64) * cells + frame * h * w
    columns = 3 - (col == 0).to(tl.int32) - (col == w - 1).to(tl.int32)
    _, above = _three_wide(x, top - 1, col, c, h, w, C, inside)
    centre, here = _three_wide(x, top, col, c, h, w, C, inside)
    for i in range(BH):
        y = top + i
        next_centre, below = _three_wide(x, y + 1, col, c, h, w, C, inside)
        rows = 3 - (y == 0).to(tl.int32) - (y == h - 1).to(tl.int32)
        high = centre - (above + here + below) / (rows * columns).to(tl.float32)[:, None]
        tl.store(out + y * w + col, tl.sum(high * high, 1), mask=col < tl.where(y < h, w, 0))
        above = here
        here = below
        centre = next_centre


def texture_energy(features: Tensor, h: int, w: int) -> Tensor:
    """:func:`stepvar.kernels.ops.texture_energy`: the energy of each block of channels, then their sum.

    The sums are in a fixed order, so that equal maps give equal scores.
    """
    features = features.contiguous()
    rows, size, width = features.shape
    block, columns, height = min(64, triton.next_power_of_2(width)), 16, 8 if h > 4 else 4
    blocks, strips = triton.cdiv(width, block), triton.cdiv(h, height)
    frames = rows * size // (h * w)
    parts = torch.empty(blocks, rows, size, dtype=torch.float32, device=features.device)
    with on_device(features):
        _texture[(triton.cdiv(w, columns), frames * strips, blocks)](
            features, parts, h, w, rows * size, strips, C=width, BC=block, BW=columns, BH=height, num_warps=4
        )
    return parts.sum(dim=0)


@triton.jit(do_not_specialize=["count", "index_row", "index_token"])
def _gather(x, index, out, count, x_row, x_token, index_row, index_token, C: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    row = place // count
    source = tl.load(index + row * index_row + (place % count) * index_token)
    c = tl.arange(0, BLOCK)
    tl.store(out + place * C + c, tl.load(x + row * x_row + source * x_token + c, mask=c < C), mask=c < C)


def gather_rows(features: Tensor, index: Tensor) -> Tensor:
    """:func:`stepvar.kernels.ops.gather_rows`."""
    features = features if features.stride(2) == 1 else features.contiguous()
    rows, count = index.shape
    width = features.shape[-1]
    out = torch.empty(rows, count, width, dtype=features.dtype, device=features.device)
    with on_device(features):
        _gather[(rows * count,)](
            features,
            index,
            out,
            count,
            features.stride(0),
            features.stride(1),
            index.stride(0),
            index.stride(1),
            C=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4,
        )
    return out


@triton.jit(do_not_specialize=["rows", "programs"])
def _moments(
    x,
    bias,
    residual,
    out,
    parts,
    rows,
    programs,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BR: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over some rows of an image, by Welford's update.

    The difference of mean square and squared mean would lose the variance of a map that lies far from zero.
    """
    program = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK)[None, :]
    first = image * rows * C + c
    if bias is not None:
        shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    count = tl.zeros([BR, 1], tl.float32)
    mean = tl.zeros([BR, BLOCK], tl.float32)
    squares = tl.zeros([BR, BLOCK], tl.float32)
    for i in range(STEPS):
        r = (program.to(tl.int64) * STEPS + i) * BR + tl.arange(0, BR)[:, None]
        inside = (r < rows) & (c < C)
        value = tl.load(x + first + r * C, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            value += shift
        if residual is not None:
            value += tl.load(residual + first + r * C, mask=inside, other=0.0).to(tl.float32)
        if out is not None:
            value = value.to(out.dtype.element_ty)
            tl.store(out + first + r * C, value, mask=inside)
            value = value.to(tl.float32)
        present = (r < rows).to(tl.float32)
        count += present
        apart = (value - mean) * present
        mean += apart * (1.0 / tl.maximum(count, 1.0))
        squares += apart * (value - mean)
    centre = tl.sum(mean * count, 0, keep_dims=True) / tl.sum(count, 0, keep_dims=True)
    deviations = tl.sum(squares + count * (mean - centre) * (mean - centre), 0, keep_dims=True)
    place = parts + (image * 2 * C + c) * programs + program
    tl.store(place, centre, mask=c < C)
    tl.store(place + C * programs, deviations, mask=c < C)


@triton.jit(do_not_specialize=["rows", "programs", "rows_each"])
def _combine(
    parts,
    mean,
    variance,
    rows,
    programs,
    rows_each,
    SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The moments of one group of an image from those of its channels in each program's rows (Chan et al.)."""
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    parts += (image * 2 * GROUPS + group) * SIZE * programs
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(BLOCKS):
        i = block * BLOCK + tl.arange(0, BLOCK)
        count = tl.minimum(rows - (i % programs) * rows_each, rows_each).to(tl.float32)
        total += tl.load(parts + i, mask=i < SIZE * programs, other=0.0) * count
    number = rows.to(tl.float32) * SIZE
    centre = tl.sum(total, 0) / number
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(BLOCKS):
        i = block * BLOCK + tl.arange(0, BLOCK)
        inside = i < SIZE * programs
        count = tl.minimum(rows - (i % programs) * rows_each, rows_each).to(tl.float32)
        apart = tl.load(parts + i, mask=inside, other=0.0) - centre
        deviations = tl.load(parts + GROUPS * SIZE * programs + i, mask=inside, other=0.0)
        total += tl.where(inside, deviations + count * apart * apart, 0.0)
    tl.store(mean + image * GROUPS + group, centre)
    tl.store(variance + image * GROUPS + group, tl.sum(total, 0) / number)


def group_moments(
    x: Tensor, groups: int, bias: Tensor | None, residual: Tensor | None, store: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``x + bias + residual``, and the mean and variance (B, groups) of each group of its channels, in one pass.

    Args:
        x: (B, C, H, W) in channels_last.
        bias: (C,).
        residual: like ``x``.
        store: whether the sum is needed; else ``x`` is returned in its place.
    """
    images, width, height, columns = x.shape
    rows, block = height * columns, triton.next_power_of_2(width)
    tile = max(1, TILE // block)
    # Four programs for each of a large GPU's multiprocessors, and as few partial sums as that allows.
    steps = triton.next_power_of_2(max(1, min(32, images * rows // (tile * 528))))
    programs = triton.cdiv(rows, tile * steps)
    parts = torch.empty(images, 2, width, programs, dtype=torch.float32, device=x.device)
    mean, variance = torch.empty(2, images, groups, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x) if store else None
    with on_device(x):
        _moments[(programs, images)](
            x, bias, residual, out, parts, rows, programs, C=width, BLOCK=block, BR=tile, STEPS=steps, num_warps=8
        )
        _combine[(groups, images)](
            parts,
            mean,
            variance,
            rows,
            programs,
            tile * steps,
            SIZE=width // groups,
            GROUPS=groups,
            BLOCK=4096,
            BLOCKS=triton.cdiv(width // groups * programs, 4096),
            num_warps=8,
        )
    return x if out is None else out, mean, variance


@triton.jit(do_not_specialize=["rows"])
def _normalise(
    x,
    out,
    mean,
    variance,
    weight,
    bias,
    conv_bias,
    rows,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BR: tl.constexpr,
    STEPS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BLOCK)[None, :]
    group = image * (C // SIZE) + c // SIZE
    first = image * rows * C + c
    offset = -tl.load(mean + group, mask=c < C, other=0.0)
    if conv_bias is not None:
        offset += tl.load(conv_bias + c, mask=c < C, other=0.0).to(tl.float32)
    gain = tl.rsqrt(tl.load(variance + group, mask=c < C, other=1.0) + EPS)
    gain *= tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    for i in range(STEPS):
        r = (tl.program_id(0).to(tl.int64) * STEPS + i) * BR + tl.arange(0, BR)[:, None]
        inside = (r < rows) & (c < C)
        value = tl.load(x + first + r * C, mask=inside, other=0.0).to(tl.float32)
        value = (value + offset) * gain + shift
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        tl.store(out + first + r * C, value.to(out.dtype.element_ty), mask=inside)


def normalise_groups(
    x: Tensor,
    moments: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    eps: float,
    silu: bool,
    conv_bias: Tensor | None,
) -> Tensor:
    """Group normalisation of ``x + conv_bias`` by given moments, and SiLU behind it."""
    images, width, height, columns = x.shape
    rows, block = height * columns, triton.next_power_of_2(width)
    tile, steps = max(1, TILE // block), 4 if images * height * columns * width >= 2**24 else 1
    out = torch.empty_like(x)
    with on_device(x):
        _normalise[(triton.cdiv(rows, tile * steps), images)](
            x,
            out,
            *moments,
            *affine,
            conv_bias,
            rows,
            C=width,
            SIZE=width // moments[0].shape[1],
            BLOCK=block,
            BR=tile,
            STEPS=steps,
            EPS=eps,
            SILU=silu,
            num_warps=8,
        )
    return out


@triton.jit(do_not_specialize=["cells", "columns"])
def _upsample(x, out, cells, columns, C: tl.constexpr, BLOCK: tl.constexpr, BR: tl.constexpr):
    """Each cell is read once and written four times."""
    cell = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    inside = (cell < cells) & (c < C)
    value = tl.load(x + cell * C + c, mask=inside)
    below = 2 * columns * C
    target = out + (cell // columns * 4 * columns + cell % columns * 2) * C + c
    tl.store(target, value, mask=inside)
    tl.store(target + C, value, mask=inside)
    tl.store(target + below, value, mask=inside)
    tl.store(target + below + C, value, mask=inside)


def upsample_nearest2x(x: Tensor) -> Tensor:
    """:func:`stepvar.kernels.decoder.upsample_nearest2x`."""
    images, width, height, columns = x.shape
    block = triton.next_power_of_2(width)
    tile = max(1, TILE // 2 // block)
    shape = (images, width, 2 * height, 2 * columns)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    cells = images * height * columns
    with on_device(x):
        _upsample[(triton.cdiv(cells, tile),)](x, out, cells, columns, C=width, BLOCK=block, BR=tile, num_warps=4)
    return out
