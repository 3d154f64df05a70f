"""Attention to lists of keys against attention under a mask, and the sums of probabilities against all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stepvar.cost.meter import Meter
from stepvar.kernels.sparse_attention import KeyLists, attend_to_lists, attend_with_mass

ROWS, HEADS, TOKENS, KEYS, WIDTH, GROUP = 2, 3, 22, 41, 8, 8


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    counts = (TOKENS, KEYS, KEYS)
    q, k, v = (torch.randn(ROWS, HEADS, count, WIDTH, generator=generator) for count in counts)
    return q, k, v


def shares(q: Tensor, k: Tensor) -> Tensor:
    return (q.double() @ k.double().mT).softmax(dim=-1)


@pytest.mark.parametrize("shared", [False, True], ids=["each-head", "all-heads"])
def test_only_listed_keys_are_seen(shared: bool) -> None:
    q, k, v = inputs()
    rows, heads = (1, 1) if shared else (ROWS, HEADS)
    places = torch.rand(rows, heads, 3, KEYS, generator=torch.Generator().manual_seed(1)).argsort(-1)[..., :12].int()
    counts = torch.tensor([12, 1, 5], dtype=torch.int32) if shared else None
    attended = attend_to_lists(q, k, v, KeyLists(places, GROUP, counts, 12))
    for row in range(ROWS):
        for head in range(HEADS):
            for token in range(TOKENS):
                group = token // GROUP
                listed = places[row % rows, head % heads, group].long()
                listed = listed if counts is None else listed[: counts[group]]
                seen = shares(q[row, head, token], k[row, head, listed]) @ v[row, head, listed].double()
                torch.testing.assert_close(attended[row, head, token].double(), seen, atol=1e-6, rtol=1e-5)


def test_all_keys_on_the_list_is_dense_attention() -> None:
    q, k, v = inputs()
    places = torch.arange(KEYS, dtype=torch.int32).flip(0).expand(1, 1, 3, -1)
    attended = attend_to_lists(q, k, v, KeyLists(places, GROUP, None, KEYS))
    torch.testing.assert_close(attended.double(), shares(q, k) @ v.double(), atol=1e-6, rtol=1e-5)


def test_mass_is_the_sum_of_probabilities_of_a_group() -> None:
    q, k, v = inputs()
    attended, mass = attend_with_mass(q, k, v, GROUP)
    expected = shares(q, k)
    torch.testing.assert_close(attended.double(), expected @ v.double(), atol=1e-6, rtol=1e-5)
    sums = [part.sum(dim=2) for part in expected.split(GROUP, dim=2)]
    torch.testing.assert_close(mass.double(), torch.stack(sums, dim=2), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mass.sum(-1), torch.tensor([8.0, 8, 6]).expand(ROWS, HEADS, 3))


def test_what_counts_is_what_the_kernel_computes() -> None:
    q, k, v = (part.to("meta") for part in inputs())
    lists = KeyLists(torch.empty(1, 1, 3, 12, dtype=torch.int32, device="meta"), GROUP, None, 12)
    meter = Meter(torch.device("meta"))
    meter.watch((q, k, v))
    before = meter.held
    with torch.inference_mode(), meter:
        attended = attend_to_lists(q, k, v, lists)
    assert meter.flops == 4 * ROWS * HEADS * TOKENS * 12 * WIDTH
    assert attended.shape == q.shape and meter.peak - before == q.nbytes  # no copy of keys or values
