"""The Triton kernel of attention to lists of keys; imported only where it runs."""

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
    """Some queries of one group and head: softmax over the listed keys, in one go as in flash attention."""
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
    index += row * index_row + head * index_head + group.to(tl.int64) * index_group
    count = listed
    if counts is not None:
        count = tl.load(counts + group)
    highest = tl.full([BQ], -float("inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    sums = tl.zeros([BQ, WIDTH], tl.float32)
    for start in range(0, count, BK):
        j = start + tl.arange(0, BK)
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


def attend_to_lists(q: Tensor, k: Tensor, v: Tensor, places: Tensor, group: int, counts: Tensor | None) -> Tensor:
    """:func:`stepvar.kernels.sparse_attention.attend_to_lists`; places (R or 1, H or 1, G, K), counts (G,)."""
    rows, heads, tokens, head_dim = q.shape
    q = q if q.stride(3) == 1 else q.contiguous()
    index = places if places.stride(3) == 1 else places.contiguous()
    index = index.expand(rows, heads, -1, -1)
    out = torch.empty(rows, tokens, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    tiles = triton.cdiv(group, QUERIES)
    with on_device(q):
        _attend_to_lists[(index.shape[2] * tiles, rows * heads)](
            q,
            k,
            v,
            out,
            index,
            counts,
            tokens,
            index.shape[3],
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *out.stride()[:3],
            *index.stride()[:3],
            H=heads,
            D=head_dim,
            WIDTH=max(16, triton.next_power_of_2(head_dim)),
            GROUP=group,
            BQ=QUERIES,
            BK=KEYS,
            num_warps=4,
        )
    return out
