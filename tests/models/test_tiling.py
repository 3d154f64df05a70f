"""Decoding by tiles."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar.core.tokens import Grid
from stepvar.errors import UsageError
from stepvar.evaluation.metrics import psnr
from stepvar.models.autoencoder import GroupNorm
from stepvar.models.infinity.tokenizer import BitTokenizer
from stepvar.models.tiling import (
    SMALLEST_TILE,
    default_overlap,
    first_whole_level,
    shared_statistics,
    starts,
    tiled,
)
from stepvar.models.var.tokenizer import VQTokenizer
from tests.helpers import SQUARE, draw, make_model, make_settings, make_var


def enlarge(latent: Tensor) -> Tensor:
    """A decoder that looks at one cell only."""
    return F.interpolate(latent, scale_factor=4.0, mode="nearest")


def latents(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 24))
def test_tiles_of_a_local_decoder_make_the_picture(height: int, width: int, tile: int) -> None:
    latent = latents(3, height, width)
    picture = tiled(enlarge, latent, tile, default_overlap(tile), 4)
    torch.testing.assert_close(picture, enlarge(latent), atol=1e-6, rtol=0)


@given(st.integers(1, 400), st.integers(8, 64))
def test_tiles_cover_and_overlap(side: int, tile: int) -> None:
    overlap = default_overlap(tile)
    begins = starts(side, tile, overlap)
    assert begins[0] == 0 and begins[-1] + tile == max(side, tile)
    assert all(0 < second - first <= tile - overlap for first, second in pairwise(begins))


def test_no_tile_is_larger_than_asked() -> None:
    sizes = []

    def decode(latent: Tensor) -> Tensor:
        sizes.append(tuple(latent.shape[-2:]))
        return enlarge(latent)

    tiled(decode, latents(3, 20, 50), 16, 4, 4)
    assert set(sizes) == {(16, 16)} and len(sizes) == 2 * 4
    sizes.clear()
    tiled(decode, latents(3, 10, 50), 16, 4, 4)
    assert set(sizes) == {(10, 16)}


def test_small_pictures_are_one_piece() -> None:
    latent = latents(3, 16, 9)
    for tile in (None, 16, 99):
        assert tiled(lambda given: given, latent, tile, 4, 1) is latent


def test_overlap_has_a_limit() -> None:
    with pytest.raises(ValueError, match="overlap=6: must be at most a third of the tile, 16 cells"):
        tiled(enlarge, latents(3, 20, 20), 16, 6, 4)


TALL = replace(SQUARE, grids=(*SQUARE.grids, Grid(1, 24, 16)))


@pytest.mark.parametrize("make", [make_model, make_var], ids=["infinity", "var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cut_decoder_is_the_decoder(make: Any, dtype: torch.dtype) -> None:
    decoder = make().set_precision(dtype).tokenizer.decoder
    latent = latents(6, 7, 9).to(dtype)
    for level in range(3):
        assert torch.equal(decoder.fine(decoder.coarse(latent, level), level), decoder(latent))


@pytest.mark.parametrize("make", [make_model, make_var], ids=["infinity", "var"])
@pytest.mark.parametrize(("size", "whole", "least"), [((24, 32), 1, 30), ((40, 56), 2, 20)])
def test_tiles_come_close_to_one_piece(make: Any, size: tuple[int, int], whole: int, least: int) -> None:
    """On random latents and weights, where nothing is smooth."""
    tokenizer: BitTokenizer | VQTokenizer = make().tokenizer
    tile = 24
    assert first_whole_level(tokenizer.decoder.widths, *size, tile) == whole
    latent = latents(6, *size)
    in_one, in_tiles = tokenizer.decode(latent), tokenizer.decode(latent, tile)
    assert in_tiles.shape == in_one.shape and in_tiles.abs().max() <= 1
    assert psnr((in_tiles + 1) / 2, (in_one + 1) / 2).min() > least
    assert torch.equal(tokenizer.decode(latent), in_one)  # nothing is left behind in the decoder
    assert torch.equal(tokenizer.decode(latent, 99), in_one)


def test_fewer_levels_are_whole_the_larger_the_picture() -> None:
    widths = (128, 256, 512, 512, 512)  # Infinity 2B
    assert [first_whole_level(widths, side, side, 32) for side in (32, 64, 128, 256, 512)] == [0, 2, 3, 4, 5]


def test_noted_statistics_are_those_of_the_input() -> None:
    norm = GroupNorm(4, 8)
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    x = latents(8, 5, 7) + 3
    own = norm(x)
    norm.noting = True
    norm(x)
    norm.noting = False
    torch.testing.assert_close(norm(x), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm(x[..., :2]), own[..., :2], atol=1e-5, rtol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_decoder_is_as_before_behind_an_error() -> None:
    decoder = make_model().tokenizer.decoder
    with pytest.raises(RuntimeError, match="on purpose"), shared_statistics(decoder, lambda: decoder(latents(6, 4, 4))):
        raise RuntimeError("on purpose")
    norms = [module for module in decoder.modules() if isinstance(module, GroupNorm)]
    assert norms and all(norm.noted is None and not norm.noting for norm in norms)


def test_model_decodes_by_tiles_once_told() -> None:
    model = make_model()
    drawn = draw(model, make_settings(TALL))
    whole = model.decode(drawn.state)
    model.enable_tiled_decode(8)
    assert model.tile == 8
    tiles = model.decode(drawn.state)
    assert tiles.shape == whole.shape and not torch.equal(tiles, whole)
    assert torch.equal(tiles, model.tokenizer.decode(drawn.state.latent, 8))
    model.enable_tiled_decode(None)
    assert torch.equal(model.decode(drawn.state), whole)


def test_smallest_tile() -> None:
    with pytest.raises(UsageError, match=f"tile=7: must be at least {SMALLEST_TILE} latent cells"):
        make_model().enable_tiled_decode(7)
