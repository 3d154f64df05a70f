"""Attention of groups of queries to lists of keys, and what each group attends to most."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.kernels.ops import use_triton

WIDEST_HEAD = 256
"""Channels of a head that the kernel holds at a time."""


class KeyLists(NamedTuple):
    """Which keys each group of neighbouring queries attends to, no key twice.

    Attributes:
        places: (R or 1, H or 1, G, K) int32, of the keys.
        group: queries of a group; the last group may have fewer.
        counts: (G,) int32, how many entries of each list hold, from the front; None: all of them.
        keys_per_query: how many hold on average, a number of the host.
    """

    places: Tensor
    group: int
    counts: Tensor | None
    keys_per_query: int


def attend_to_lists(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists) -> Tensor:
    """``softmax(q k^T) v`` over the keys on the lists alone, with a scale of 1.

    The kernel reads keys and values where they lie, so no copy of them is made. On the meta device it counts as what
    the kernel computes.

    Args:
        q: (R, H, N, D).
        k, v: (R, H, M, D).

    Returns:
        (R, H, N, D).
    """
    if q.is_meta:
        seen = lists.keys_per_query
        return F.scaled_dot_product_attention(q, k[:, :, :seen], v[:, :, :seen], scale=1.0)
    if _kernel_runs(q, k, v):
        from stepvar.kernels import triton_sparse

        return triton_sparse.attend_to_lists(q, k, v, lists.places, lists.group, lists.counts)
    return _attend_masked(q, k, v, lists)


def _kernel_runs(q: Tensor, k: Tensor, v: Tensor) -> bool:
    half = q.dtype != torch.float32 and q.dtype == k.dtype == v.dtype
    regular = k.stride(3) == v.stride(3) == 1 and q.shape[3] <= WIDEST_HEAD
    return half and regular and use_triton(q, k, v)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists) -> Tensor:
    """Attention of each group to all keys, of which a mask hides those that are not on its list."""
    index, total = lists.places.long(), k.shape[2]
    if lists.counts is not None:
        behind = torch.arange(index.shape[-1], device=index.device) >= lists.counts.unsqueeze(-1)
        index = index.masked_fill(behind, total)
    attended = []
    for group, queries in enumerate(q.split(lists.group, dim=2)):
        mask = torch.zeros(*index.shape[:2], 1, total + 1, dtype=torch.bool, device=q.device)
        mask.scatter_(-1, index[:, :, group : group + 1], True)
        attended.append(F.scaled_dot_product_attention(queries, k, v, attn_mask=mask[..., :total], scale=1.0))
    return torch.cat(attended, dim=2)


def attend_with_mass(q: Tensor, k: Tensor, v: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Attention over all keys, and how much of it each key gets from each group of neighbouring queries.

    The kernels write no probabilities, which at 1024x1024 are a gigabyte: the first notes the denominators of the
    softmax, the second sums by key.

    Args:
        q: (R, H, N, D).
        k, v: (R, H, M, D).
        group: queries of a group; the last may have fewer.

    Returns:
        (R, H, N, D), and the sums of probabilities (R, H, G, M) in float32.
    """
    if _kernel_runs(q, k, v):
        from stepvar.kernels import triton_sparse

        return triton_sparse.attend_with_mass(q, k, v, group)
    attended, mass = [], []
    for queries in q.split(group, dim=2):
        shares = torch.softmax(queries @ k.mT, dim=-1, dtype=torch.float32)
        mass.append(shares.sum(dim=2))
        attended.append(shares.to(v.dtype) @ v)
    return torch.cat(attended, dim=2), torch.stack(mass, dim=2)
