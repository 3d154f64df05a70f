"""Fidelity and distances against known values and other implementations."""

from __future__ import annotations

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.evaluation.distribution import Moments, frechet_distance, kernel_distance
from stepvar.evaluation.frames import fidelity
from stepvar.evaluation.learned import Unavailable, load_scores
from stepvar.evaluation.metrics import high_frequency_share, psnr, ssim


def pictures(count: int = 3, height: int = 40, width: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_ssim_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional import image

    clean = pictures()
    noisy = (clean + 0.2 * (pictures(seed=1) - 0.5)).clamp(0, 1)
    theirs = image.structural_similarity_index_measure(noisy, clean, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(noisy, clean), theirs, atol=2e-5, rtol=0)
    assert 0.3 < float(theirs.mean()) < 0.99


def test_ssim_of_equal_and_of_small_pictures() -> None:
    torch.testing.assert_close(ssim(pictures(), pictures()), torch.ones(3))
    with pytest.raises(ValueError, match="the window needs 11x11"):
        ssim(pictures(height=8), pictures(height=8))


def test_psnr_of_a_known_error() -> None:
    assert float(psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5))) == pytest.approx(20.0, abs=1e-4)


def test_high_frequency_share() -> None:
    sharp = pictures()
    torch.testing.assert_close(high_frequency_share(0.5 * sharp, sharp), torch.full((3,), 0.25))
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert float(high_frequency_share(flat, flat)) == 1.0


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)
    base = torch.linalg.qr(torch.randn(4000, 3, generator=generator, dtype=torch.float64)).Q
    base = base - base.mean(0)
    # Make mean 0 and covariance exactly the identity.
    values, vectors = torch.linalg.eigh(base.T @ base / 3999)
    white = base @ vectors / values.sqrt()
    first = white * torch.tensor([1.0, 2.0, 3.0])
    second = white.flip(0) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.5, 0.0, 0.0])
    found = frechet_distance(Moments.of(first), Moments.of(second))
    assert found == pytest.approx(0.25 + 1.0 + 0.0 + 4.0, abs=1e-6)
    assert frechet_distance(Moments.of(first), Moments.of(first)) == pytest.approx(0.0, abs=1e-8)


def test_moments_add_up_and_survive_writing() -> None:
    features = torch.rand(50, 8, generator=torch.Generator().manual_seed(1))
    whole, parts = Moments.of(features), Moments.of(features[:20]) + Moments.of(features[20:])
    again = Moments.decode(parts.encode())
    assert again.count == 50
    torch.testing.assert_close(torch.from_numpy(again.covariance), torch.cov(features.double().T), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.from_numpy(parts.mean), torch.from_numpy(whole.mean))
    with pytest.raises(UsageError, match="1 pictures: a covariance needs at least 2"):
        _ = Moments.of(features[:1]).covariance


def test_kernel_distance_against_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.rand(6, 4, generator=generator), torch.rand(5, 4, generator=generator) + 0.3

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x.double() @ y.double()) / 4 + 1) ** 3

    def within(items: torch.Tensor) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(items) for j, b in enumerate(items) if i != j]
        return sum(pairs) / len(pairs)

    cross = [kernel(a, b) for a in first for b in second]
    wanted = within(first) + within(second) - 2 * sum(cross) / len(cross)
    assert kernel_distance(first, second) == pytest.approx(wanted, rel=1e-9)
    apart = [kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(second[:5]) if i < 5 and i != j]
    matched = within(first[:5]) + within(second) - 2 * sum(apart) / len(apart)
    assert kernel_distance(first[:5], second, matched=True) == pytest.approx(matched, rel=1e-9)
    with pytest.raises(UsageError, match="1 and 5 pictures"):
        kernel_distance(first[:1], second)
    with pytest.raises(UsageError, match="matched sets must be of one size"):
        kernel_distance(first, second, matched=True)


def test_scores_that_are_unknown_or_missing_say_so() -> None:
    with pytest.raises(UsageError, match=r"scores: 'beauty' is unknown; choose from clip, image-reward, hpsv2"):
        load_scores(["beauty"], torch.device("cpu"))
    with pytest.raises(UsageError, match=r"'hpsv2' needs its package"):
        load_scores(["hpsv2"], torch.device("cpu"))
    assert str(Unavailable("no weights")) == "not available: no weights"


def test_fidelity_of_videos() -> None:
    """A square that moves right; the other video adds one level of flicker to every second frame, and goes left."""
    reference = torch.full((2, 5, 3, 32, 32), 0.5)
    for frame in range(5):
        reference[:, frame, :, 12:18, 4 + 4 * frame : 10 + 4 * frame] = 1.0
    other = reference.clone()
    other[:, 1::2] += 1 / 255
    other[1] = reference[1].flip(0)
    first, second = fidelity(other, reference)
    assert first["flicker"] == pytest.approx(1.0, abs=0.02) and (first["motion"], second["motion"]) == (1.0, 0.0)
    assert first["frames"]["psnr"][0] == 99.0 and first["frames"]["psnr"][1] == pytest.approx(48.1, abs=0.1)
    assert len(first["frames"]["ssim"]) == 5 and first["psnr"] > second["psnr"]
    (picture,) = fidelity(other[:1, :1], reference[:1, :1])
    assert "frames" not in picture and "flicker" not in picture and picture["psnr"] == 99.0
