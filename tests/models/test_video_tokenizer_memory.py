"""Estimates of the video tokenizer's memory against what its tensors hold."""

from __future__ import annotations

import pytest
import torch

from stepvar.models.infinity_star.tokenizer import VideoTokenizer, VideoTokenizerConfig
from stepvar.models.infinity_star.tokenizer_memory import decode_bytes, encode_bytes
from tests.cost.test_memory import live_peak

MIDDLE = VideoTokenizerConfig(channels=(16, 32, 64, 64))
SHALLOW = VideoTokenizerConfig(channels=(16, 32, 32), halves_time=(True, True))
CASES = [(1, 1, None), (5, 1, None), (5, 2, None), (5, None, None), (7, 2, None), (5, 2, 8), (5, None, 8)]


@pytest.mark.parametrize("config", [MIDDLE, SHALLOW], ids=["four levels", "three levels"])
@pytest.mark.parametrize(("latents", "chunk", "tile"), CASES)
def test_estimate_is_near_the_peak(
    config: VideoTokenizerConfig, latents: int, chunk: int | None, tile: int | None
) -> None:
    tokenizer = VideoTokenizer(config).requires_grad_(False)
    feature = torch.randn(1, config.token_channels, latents, 3, 9)
    peak = live_peak(lambda: tokenizer.decode(feature, tile, chunk))
    assert 1 / 1.15 < peak / decode_bytes(config, latents, 3, 9, 4, chunk, tile, space=False) < 1.15
    if tile is None:
        video = torch.zeros(1, 3, config.frames(latents), 3 * config.stride, 9 * config.stride)
        peak = live_peak(lambda: tokenizer.moments(video, chunk))
        assert 1 / 1.15 < peak / encode_bytes(config, latents, 3, 9, 4, chunk, space=False) < 1.15


def test_chunks_bound_the_memory_of_long_videos() -> None:
    config = VideoTokenizerConfig()
    short, long = (decode_bytes(config, latents, 45, 80, 2) for latents in (21, 41))
    video = 3 * 4 * 80 * 720 * 1280
    assert long - short == video  # only the video itself grows
    assert decode_bytes(config, 21, 45, 80, 2, chunk=None) > 4 * short
    assert decode_bytes(config, 21, 45, 80, 2, tile=20) < short / 2
    assert 1.1 * decode_bytes(config, 21, 45, 80, 2, space=False) < short
    assert encode_bytes(config, 21, 45, 80) == encode_bytes(config, 41, 45, 80)
