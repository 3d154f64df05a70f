"""The video tokenizer of InfinityStar: causal, whatever the chunks, and trainable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.errors import CheckpointError, UsageError
from stepvar.models.infinity_star.tokenizer import POLICY, VideoTokenizer, VideoTokenizerConfig
from stepvar.models.infinity_star.video_layers import LatentNorm, Past, latent_frames
from stepvar.models.precision import Precision, apply_precision
from tests.helpers import make_star

TINY = VideoTokenizerConfig(channels=(8, 8, 16), halves_time=(True, True), blocks=1, decoder_blocks=2, middle_blocks=1)
UNEVEN = VideoTokenizerConfig(channels=(4, 8, 8, 16), halves_time=(False, True, False), blocks=1, decoder_blocks=1)


def make_tokenizer(config: VideoTokenizerConfig = TINY, seed: int = 0) -> VideoTokenizer:
    """With weights under which every part matters."""
    torch.manual_seed(seed)
    tokenizer = VideoTokenizer(config)
    for name, weight in tokenizer.named_parameters():
        if weight.dim() == 1 or name.endswith("gamma"):
            weight.data = (0.0 if name.endswith("bias") else 1.0) + 0.2 * torch.randn_like(weight)
    return tokenizer.eval().requires_grad_(False)


def features(latents: int, config: VideoTokenizerConfig = TINY, size: tuple[int, int] = (2, 3)) -> Tensor:
    return torch.randn(2, config.token_channels, latents, *size, generator=torch.Generator().manual_seed(1))


def videos(frames: int, config: VideoTokenizerConfig = TINY) -> Tensor:
    size = (2 * config.stride, 3 * config.stride)
    return torch.rand(2, 3, frames, *size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("config", [TINY, UNEVEN], ids=["time twice", "time once"])
@pytest.mark.parametrize("latents", [1, 2, 3, 4, 5])
def test_any_chunks_decode_to_the_same_video(config: VideoTokenizerConfig, latents: int) -> None:
    tokenizer, feature = make_tokenizer(config), features(latents, config)
    whole = tokenizer.decode(feature, chunk=None)
    assert whole.shape == (2, 3, config.frames(latents), 2 * config.stride, 3 * config.stride)
    for chunk in range(1, latents + 1):
        torch.testing.assert_close(tokenizer.decode(feature, chunk=chunk), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [TINY, UNEVEN], ids=["time twice", "time once"])
@pytest.mark.parametrize("latents", [1, 2, 4, 5])
def test_any_chunks_encode_to_the_same_moments(config: VideoTokenizerConfig, latents: int) -> None:
    tokenizer, video = make_tokenizer(config), videos(config.frames(latents), config)
    whole = tokenizer.moments(video, chunk=None)
    assert whole.shape == (2, 2 * config.latent_channels, latents, 2 * config.patch, 3 * config.patch)
    for chunk in range(1, latents + 1):
        torch.testing.assert_close(tokenizer.moments(video, chunk=chunk), whole, atol=1e-5, rtol=0)


def test_nothing_looks_ahead() -> None:
    tokenizer, feature = make_tokenizer(), features(4)
    video = tokenizer.decode(feature)
    for latents in (1, 2, 3):
        early = tokenizer.decode(feature[:, :, :latents])
        torch.testing.assert_close(early, video[:, :, : early.shape[2]], atol=1e-5, rtol=0)
        before = tokenizer.moments(video[:, :, : early.shape[2]])
        torch.testing.assert_close(before, tokenizer.moments(video)[:, :, :latents], atol=1e-5, rtol=0)


def test_a_latent_frame_is_heard_in_the_frames_from_its_own_on() -> None:
    tokenizer, feature = make_tokenizer(), features(3)
    other = feature.clone()
    other[:, :, 1] += 1
    changed = (tokenizer.decode(feature) - tokenizer.decode(other)).abs().amax(dim=(0, 1, 3, 4)) > 0
    assert changed.tolist() == [False] + 8 * [True]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("latents", "group"), [(1, 1), (2, 2), (3, 4)])
def test_norm_by_latent_is_the_norm_by_the_enlarged_latent(first: bool, latents: int, group: int) -> None:
    torch.manual_seed(0)
    norm = LatentNorm(6, 4).requires_grad_(False)
    latent = torch.randn(2, 4, latents, 2, 3)
    x = torch.randn(2, 6, 1 + group * (latents - 1) if first else group * latents, 8, 12)
    past = Past()
    past.first = first
    if first and latents > 1:
        later = F.interpolate(latent[:, :, 1:], size=(x.shape[2] - 1, 8, 12))
        enlarged = torch.cat((F.interpolate(latent[:, :, :1], size=(1, 8, 12)), later), dim=2)
    else:
        enlarged = F.interpolate(latent, size=x.shape[2:])
    expected = norm.norm_layer(x, past) * norm.conv_y(enlarged) + norm.conv_b(enlarged)
    torch.testing.assert_close(norm(x, past, latent), expected, atol=1e-5, rtol=0)


def test_first_frame_belongs_to_the_first_latent_alone() -> None:
    assert latent_frames(9, 3, True, torch.device("cpu")).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert latent_frames(4, 2, False, torch.device("cpu")).tolist() == [0, 0, 1, 1]
    assert latent_frames(1, 1, True, torch.device("cpu")).tolist() == [0]


def test_the_sample_is_as_the_moments_say() -> None:
    tokenizer, video = make_tokenizer(), videos(5)
    mean, log_variance = tokenizer.posterior(tokenizer.moments(video))
    noise = torch.randn(mean.shape)
    expected = tokenizer.project_down(mean + (log_variance / 2).exp() * noise)
    torch.testing.assert_close(tokenizer.encode(video, noise), expected)
    assert torch.equal(tokenizer.encode(video, mean=True), tokenizer.project_down(mean))
    generated = [tokenizer.encode(video, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(generated[0], generated[1]) and not torch.equal(generated[0], generated[2])


def test_channels_of_a_token_are_cells_of_the_latent() -> None:
    """A token's channel ``4 c + 2 y + x`` is channel c of the cell at (y, x) of its square."""
    tokenizer = make_tokenizer()
    tokenizer.proj_up.weight.data, tokenizer.proj_up.bias.data = torch.eye(64), torch.zeros(64)
    tokenizer.scale_learnable_parameters.data[0] = 2.0
    feature = torch.zeros(1, 64, 2, 3, 4)
    feature[0, 4 * 5 + 2 * 1 + 0, 1, 2, 3] = 1.0
    assert tokenizer.latent_picture(feature).nonzero().tolist() == [[0, 5, 1, 2 * 2 + 1, 2 * 3 + 0]]


def test_every_weight_gets_a_gradient() -> None:
    tokenizer, video = make_tokenizer().requires_grad_(True), videos(5)
    # Not decoding what was encoded: there the scale of the features cancels.
    (
        tokenizer.encode(video, chunk=1).square().mean() + tokenizer.decode(features(2), chunk=1).square().mean()
    ).backward()
    still = [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_gradients_do_not_depend_on_the_chunks() -> None:
    tokenizer, feature = make_tokenizer(), features(3).requires_grad_(True)
    gradients = [
        torch.autograd.grad(tokenizer.decode(feature, chunk=chunk).square().mean(), feature)[0] for chunk in (1, None)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_one_tile_is_the_whole_and_tiles_are_close() -> None:
    tokenizer, feature = make_tokenizer(), features(2, size=(8, 20))
    whole = tokenizer.decode(feature)
    assert torch.equal(tokenizer.decode(feature, tile=20), whole)
    assert (tokenizer.decode(feature, tile=16) - whole).abs().max() < 0.1 * whole.abs().max()


def test_low_precision_stays_near() -> None:
    tokenizer, feature = make_tokenizer(), features(3)
    exact, video = tokenizer.decode(feature), videos(5)
    moments = tokenizer.moments(video)
    apply_precision(tokenizer, Precision.of(torch.bfloat16), POLICY)
    assert tokenizer.decoder.get_parameter("conv_in.conv.weight").dtype == torch.bfloat16
    assert tokenizer.decoder.get_parameter("norm_out.norm_layer.gamma").dtype == torch.float32
    rough = tokenizer.decode(feature)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert (tokenizer.moments(video).float() - moments).abs().max() < 0.1 * moments.abs().max()
    assert tokenizer.encode(video, mean=True).dtype == torch.float32


def test_scale_and_gains_stay_exact_in_a_model_of_low_precision() -> None:
    model = make_star().to(torch.bfloat16)
    tokenizer = model.tokenizer
    assert tokenizer.scale_learnable_parameters.dtype == torch.float32
    assert {weight.dtype for name, weight in tokenizer.named_parameters() if name.endswith("gamma")} == {torch.float32}
    assert tokenizer.proj_up.weight.dtype == torch.bfloat16


def test_published_shape_is_the_default() -> None:
    config = VideoTokenizerConfig()
    assert (config.stride, config.frame_stride, config.cell_channels) == (16, 4, 64)
    assert config.frames(21) == 81 and config.latent_frames(161) == 41
    with torch.device("meta"):
        tokenizer = VideoTokenizer(config)
    # Without two unused linear layers of 64 x 64.
    count = sum(weight.numel() for weight in tokenizer.parameters())
    assert round(count / 1e6, 1) == 184.7


@pytest.mark.parametrize("frames", [0, 2, 4, 80])
def test_frames_that_make_no_groups_are_refused(frames: int) -> None:
    with pytest.raises(UsageError, match=f"frames={frames}: must be 1 plus a multiple of 4"):
        VideoTokenizerConfig().latent_frames(frames)


def test_sizes_that_make_no_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match=r"20x24: both must be multiples of 8"):
        make_tokenizer().encode(torch.zeros(1, 3, 1, 20, 24))
    with pytest.raises(UsageError, match="chunk=0: must be at least 1"):
        make_tokenizer().decode(features(1), chunk=0)


@pytest.mark.parametrize(
    "settings", [{"halves_time": (True,)}, {"channels": (8, 8, 10)}, {"channels": (8, 64, 64)}], ids=str
)
def test_shapes_that_fit_no_layer_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        VideoTokenizerConfig(**({"halves_time": (True, True), "channels": (8, 8, 8)} | settings))
