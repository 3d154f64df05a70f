"""The Triton kernels of attention to lists of keys; imported only where they run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepvar.kernels.triton_ops import on_device

QUERIES, KEYS = 64, 64
"""Queries of a program, and keys that it reads at a time."""

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["tokens", "listed"])
def _attend_to_lists(
    q,
    k,
    v,
    out,
    log_total,
    index,
    counts,
    tokens,
    listed,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    v_row,
    v_head,
    v_token,
    out_row,
    out_head,
    out_token,
    index_row,
    index_head,
    index_group,
    H: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
):
    """Some queries of one group and head: softmax over the listed keys, in one go as in flash attention.

    Without lists (``index``) over the first ``listed`` keys. ``log_total``: if given, takes the logarithms to base 2 of
    the softmax's denominators.
    """
    TILES: tl.constexpr = (GROUP + BQ - 1) // BQ
    group = tl.program_id(0) // TILES
    row = (tl.program_id(1) // H).to(tl.int64)
    head = (tl.program_id(1) % H).to(tl.int64)
    within = (tl.program_id(0) % TILES) * BQ + tl.arange(0, BQ)
    n = group * GROUP + within
    d = tl.arange(0, WIDTH)
    there = ((within < GROUP) & (n < tokens))[:, None] & (d < D)[None, :]
    query = tl.load(
        q + row * q_row + head * q_head + n[:, None].to(tl.int64) * q_token + d[None, :], mask=there, other=0.0
    )
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    if index is not None:
        index += row * index_row + head * index_head + group.to(tl.int64) * index_group
    count = listed
    if counts is not None:
        count = tl.load(counts + group)
    highest = tl.full([BQ], -float("inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    sums = tl.zeros([BQ, WIDTH], tl.float32)
    for start in range(0, count, BK):
        j = start + tl.arange(0, BK)
        place = j.to(tl.int64)
        if index is not None:
            place = tl.load(index + j, mask=j < count, other=0).to(tl.int64)
        held = (j < count)[:, None] & (d < D)[None, :]
        key = tl.load(k + place[:, None] * k_token + d[None, :], mask=held, other=0.0)
        scores = tl.dot(query, tl.trans(key)) * LOG2_E
        scores = tl.where((j < count)[None, :], scores, -float("inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(highest - peak)
        total = total * fade + tl.sum(weights, 1)
        value = tl.load(v + place[:, None] * v_token + d[None, :], mask=held, other=0.0)
        sums = sums * fade[:, None] + tl.dot(weights.to(value.dtype), value)
        highest = peak
    target = out + row * out_row + head * out_head + n[:, None].to(tl.int64) * out_token + d[None, :]
    tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=there)
    if log_total is not None:
        real = (within < GROUP) & (n < tokens)
        tl.store(log_total + tl.program_id(1).to(tl.int64) * tokens + n, highest + tl.log2(total), mask=real)


def attend_to_lists(q: Tensor, k: Tensor, v: Tensor, places: Tensor, group: int, counts: Tensor | None) -> Tensor:
    """:func:`stepvar.kernels.sparse_attention.attend_to_lists`; places (R or 1, H or 1, G, K), counts (G,)."""
    index = places if places.stride(3) == 1 else places.contiguous()
    return _attend(q, k, v, index.expand(*q.shape[:2], -1, -1), counts, group, None)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    counts: Tensor | None,
    group: int,
    log_total: Tensor | None,
) -> Tensor:
    """Attention over listed keys, or over all."""
    rows, heads, tokens, head_dim = q.shape
    q = q if q.stride(3) == 1 else q.contiguous()
    out = torch.empty(rows, tokens, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    groups = triton.cdiv(tokens, group) if index is None else index.shape[2]
    with on_device(q):
        _attend_to_lists[(groups * triton.cdiv(group, QUERIES), rows * heads)](
            q,
            k,
            v,
            out,
            log_total,
            index,
            counts,
            tokens,
            k.shape[2] if index is None else index.shape[3],
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *((0, 0, 0) if index is None else index.stride()[:3]),
            H=heads,
            D=head_dim,
            WIDTH=_width(head_dim),
            GROUP=group,
            BQ=QUERIES,
            BK=KEYS,
            num_warps=4,
        )
    return out


def _width(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


@triton.jit(do_not_specialize=["tokens", "keys"])
def _mass(
    q,
    k,
    log_total,
    mass,
    tokens,
    keys,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    mass_row,
    mass_head,
    mass_group,
    H: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
):
    """Some keys of one head: the sum of their probabilities over the queries of one group."""
    group = tl.program_id(1)
    row = (tl.program_id(2) // H).to(tl.int64)
    head = (tl.program_id(2) % H).to(tl.int64)
    m = tl.program_id(0) * BK + tl.arange(0, BK)
    d = tl.arange(0, WIDTH)
    held = (m < keys)[:, None] & (d < D)[None, :]
    key = tl.load(
        k + row * k_row + head * k_head + m[:, None].to(tl.int64) * k_token + d[None, :], mask=held, other=0.0
    )
    q += row * q_row + head * q_head
    log_total += tl.program_id(2).to(tl.int64) * tokens
    sums = tl.zeros([BK], tl.float32)
    for start in range(0, GROUP, BQ):
        within = start + tl.arange(0, BQ)
        n = group * GROUP + within
        real = (within < GROUP) & (n < tokens)
        query = tl.load(
            q + n[:, None].to(tl.int64) * q_token + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0
        )
        denominator = tl.load(log_total + n, mask=real, other=0.0)
        shares = tl.exp2(tl.dot(query, tl.trans(key)) * LOG2_E - denominator[:, None])
        sums += tl.sum(tl.where(real[:, None], shares, 0.0), 0)
    target = mass + row * mass_row + head * mass_head + group.to(tl.int64) * mass_group + m
    tl.store(target, sums, mask=m < keys)


def attend_with_mass(q: Tensor, k: Tensor, v: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """:func:`stepvar.kernels.sparse_attention.attend_with_mass`: probabilities are never written, only their sums."""
    rows, heads, tokens, head_dim = q.shape
    q, keys = q if q.stride(3) == 1 else q.contiguous(), k.shape[2]
    log_total = torch.empty(rows, heads, tokens, dtype=torch.float32, device=q.device)
    out = _attend(q, k, v, None, None, QUERIES, log_total)
    groups = triton.cdiv(tokens, group)
    mass = torch.empty(rows, heads, groups, keys, dtype=torch.float32, device=q.device)
    with on_device(q):
        _mass[(triton.cdiv(keys, KEYS), groups, rows * heads)](
            q,
            k,
            log_total,
            mass,
            tokens,
            keys,
            *q.stride()[:3],
            *k.stride()[:3],
            *mass.stride()[:3],
            H=heads,
            D=head_dim,
            WIDTH=_width(head_dim),
            GROUP=group,
            BQ=QUERIES,
            BK=KEYS,
            num_warps=4,
        )
    return out, mass
