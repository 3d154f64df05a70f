"""Codes of InfinityStar: bits, channels and scales."""

from __future__ import annotations

import torch

from stepvar.core.tokens import Grid
from stepvar.models.infinity_star.codes import bits_of, codes_of, enlarge_codes, quantise, quantise_clip, shrink


def test_codes_have_length_one() -> None:
    bits = torch.randint(0, 2, (2, 16, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    codes = codes_of(bits)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2, 3, 2, 2))
    assert torch.equal(codes > 0, bits.bool())


def test_semantic_codes_are_stretched_over_the_channels() -> None:
    """Half-pixel centres: of two channels, the outer ones of eight are the two and those between are mixed."""
    codes = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1, 1)
    wide = enlarge_codes(codes, 8, (1, 1)).flatten()
    assert wide.tolist() == [-1, -1, -0.75, -0.25, 0.25, 0.75, 1, 1]


def test_time_is_never_mixed() -> None:
    codes = torch.zeros(1, 4, 3, 2, 2)
    codes[:, :, 1] = 1
    large = enlarge_codes(codes, 8, (4, 6))
    assert large.shape == (1, 8, 3, 4, 6)
    assert large[:, :, 1].eq(1).all() and large[:, :, [0, 2]].eq(0).all()


def test_codes_of_full_size_are_themselves() -> None:
    codes = torch.randn(1, 8, 2, 3, 4)
    assert enlarge_codes(codes, 8, (3, 4)) is codes
    assert shrink(codes, Grid(2, 3, 4)) is codes


def test_bits_are_signs_of_means() -> None:
    residual = torch.zeros(1, 4, 1, 2, 2)
    residual[0, 0] = torch.tensor([[3.0, -1.0], [-1.0, -0.5]])
    residual[0, 2:] = -1.0
    assert bits_of(residual, Grid(1, 1, 1), 2).flatten().tolist() == [True, False]
    assert bits_of(residual, Grid(1, 2, 2), 4)[0, 0, 0].tolist() == [[True, False], [False, False]]


def test_each_pass_codes_what_is_left() -> None:
    target = torch.randn(2, 8, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    passes = [(Grid(3, 1, 1), 2), (Grid(3, 2, 3), 2), (Grid(3, 2, 3), 2), (Grid(3, 4, 6), 8), (Grid(3, 4, 6), 8)]
    bits, total = quantise_clip(target, passes)
    assert [tuple(found.shape) for found in bits] == [(2, count, *grid.shape) for grid, count in passes]
    torch.testing.assert_close(total, sum(enlarge_codes(codes_of(found), 8, (4, 6)) for found in bits))
    before = total - codes_of(bits[-1])
    assert torch.equal(bits[-1], target - before > 0)


def test_clips_know_nothing_of_each_other() -> None:
    feature = torch.randn(1, 8, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    clips = [[(Grid(1, 1, 1), 2), (Grid(1, 2, 2), 8)], [(Grid(3, 1, 1), 2), (Grid(3, 2, 2), 8)]]
    bits, total = quantise(feature, clips)
    first, second = quantise_clip(feature[:, :, :1], clips[0]), quantise_clip(feature[:, :, 1:4], clips[1])
    assert all(torch.equal(ours, alone) for ours, alone in zip(bits, first[0] + second[0], strict=True))
    assert torch.equal(total, torch.cat((first[1], second[1]), dim=2))
