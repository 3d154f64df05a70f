"""Decoding by tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepvar import Pipeline
from stepvar.core.tokens import Grid
from stepvar.errors import UsageError
from stepvar.evaluation.metrics.fidelity import psnr
from stepvar.models.autoencoder import SHARED_STATISTICS, GroupNorm
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
from tests.helpers import SQUARE, equal_everywhere, generate_infinity, make_model, make_settings, make_var


def enlarge(latent: Tensor) -> Tensor:
    """A decoder that looks at one cell only."""
    return F.interpolate(latent, scale_factor=4.0, mode="nearest")


def latents(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 24))
def test_tiles_of_a_local_decoder_make_the_image(height: int, width: int, tile: int) -> None:
    latent = latents(3, height, width)
    image = tiled(enlarge, latent, tile, default_overlap(tile), 4)
    torch.testing.assert_close(image, enlarge(latent), atol=1e-6, rtol=0)


@given(st.integers(1, 400), st.integers(8, 64))
def test_tiles_cover_and_overlap(side: int, tile: int) -> None:
    overlap = default_overlap(tile)
    begins = starts(side, tile, overlap)
    assert begins[0] == 0 and begins[-1] + tile == max(side, tile)
    assert all(0 < second - first <= tile - overlap for first, second in pairwise(begins))


def test_no_tile_is_larger_than_its_limit() -> None:
    sizes = []

    def decode(latent: Tensor) -> Tensor:
        sizes.append(tuple(latent.shape[-2:]))
        return enlarge(latent)

    tiled(decode, latents(3, 20, 50), 16, 4, 4)
    assert set(sizes) == {(16, 16)} and len(sizes) == 2 * 4
    sizes.clear()
    tiled(decode, latents(3, 10, 50), 16, 4, 4)
    assert set(sizes) == {(10, 16)}


def test_small_images_are_one_piece() -> None:
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


def test_fewer_levels_are_whole_the_larger_the_image() -> None:
    widths = (128, 256, 512, 512, 512)  # Infinity 2B
    assert [first_whole_level(widths, side, side, 32) for side in (32, 64, 128, 256, 512)] == [0, 2, 3, 4, 5]


def test_recorded_statistics_are_those_of_the_input() -> None:
    norm = GroupNorm(4, 8)
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    x = latents(8, 5, 7) + 3
    own = norm(x)
    with shared_statistics(lambda: norm(x)):
        torch.testing.assert_close(norm(x), own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm(x[..., :2]), own[..., :2], atol=1e-5, rtol=1e-5)
        assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(norm(x), own)


def test_statistics_are_no_longer_shared_behind_an_error() -> None:
    decoder, latent = make_model().tokenizer.decoder, latents(6, 4, 4)
    own = decoder(latent)
    with pytest.raises(RuntimeError, match="on purpose"), shared_statistics(lambda: decoder(latents(6, 4, 4, seed=1))):
        assert not torch.equal(decoder(latent), own)
        raise RuntimeError("on purpose")
    assert SHARED_STATISTICS.get() is None and torch.equal(decoder(latent), own)


def test_threads_that_share_a_model_share_no_statistics() -> None:
    """Two threads decode by tiles at once, in step from tile to tile, and give what each gives alone."""
    tokenizer, both = make_model().tokenizer, Barrier(2, timeout=60)
    decoder = tokenizer.decoder
    inputs = [latents(6, 24, 32, seed) for seed in (0, 1)]
    alone = [tokenizer.decode(latent, 24) for latent in inputs]
    fine = decoder.fine

    def in_step(latent: Tensor, level: int) -> Tensor:
        both.wait()
        return fine(latent, level)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(decoder, "fine", in_step)
        together = list(threads.map(lambda latent: tokenizer.decode(latent, 24), inputs))
    assert equal_everywhere(together, alone)
    assert not torch.equal(alone[0], alone[1])


def test_model_decodes_by_tiles_when_told() -> None:
    model = make_model()
    generated = generate_infinity(model, make_settings(TALL))
    whole = model.decode(generated.state)
    tiles = model.decode(generated.state, tile=8)
    assert tiles.shape == whole.shape and not torch.equal(tiles, whole)
    assert torch.equal(tiles, model.tokenizer.decode(generated.state.latent, 8))
    assert torch.equal(model.decode(generated.state, tile=99), whole)
    assert torch.equal(model.decode(generated.state), whole)


def test_pipeline_decodes_by_tiles_once_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained("scenes")
    asked: list[tuple[int | None, bool]] = []
    decode = pipe.model.decode

    def listen(state: Any, tile: int | None = None, sliced: bool = False) -> Tensor:
        asked.append((tile, sliced))
        return decode(state, tile, sliced)

    monkeypatch.setattr(pipe.model, "decode", listen)
    pipe.enable_vae_tiling(8)("a red circle", seed=0)
    pipe.disable_vae_tiling().enable_vae_slicing()("a red circle", seed=0)
    assert asked == [(8, False), (None, True)]


def test_smallest_tile() -> None:
    with pytest.raises(UsageError, match=f"tile=7: must be at least {SMALLEST_TILE} latent cells"):
        Pipeline.from_pretrained("scenes").enable_vae_tiling(7)
