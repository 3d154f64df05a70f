"""Fidelity and distances against known values and other implementations."""

from __future__ import annotations

import sys

import pytest
import torch

from stepvar.errors import UsageError
from stepvar.evaluation.metrics.distribution import frechet_distance, kernel_distance
from stepvar.evaluation.metrics.fidelity import fidelity, high_frequency_share, psnr, ssim
from stepvar.evaluation.metrics.learned import Unavailable, load_scores
from stepvar.utils.require import require


def pictures(count: int = 3, height: int = 40, width: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_ssim_of_known_images() -> None:
    """Equal images; a constant shift, of which only the luminance term is left; and noise, which lowers it."""
    torch.testing.assert_close(ssim(pictures(), pictures()), torch.ones(3))
    flat = torch.full((1, 3, 20, 20), 0.5)
    luminance = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert float(ssim(flat + 0.1, flat)) == pytest.approx(luminance, abs=1e-4)
    clean = pictures()
    noisy = (clean + 0.2 * (pictures(seed=1) - 0.5)).clamp(0, 1)
    assert ssim(noisy, clean).shape == (3,) and 0.3 < float(ssim(noisy, clean).mean()) < 0.99


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(UsageError, match=r"needs the package torchmetrics; pip install '\.\[eval\]'"):
        ssim(pictures(), pictures())
    assert require("json").dumps({}) == "{}"


def test_psnr_of_a_known_error() -> None:
    assert float(psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5))) == pytest.approx(20.0, abs=1e-4)


def test_psnr_of_a_video_is_over_all_of_its_pixels() -> None:
    """A first frame that is equal halves the error, 3 dB; it does not count as a frame of 99 dB."""
    reference = torch.full((1, 2, 3, 4, 4), 0.5)
    other = reference.clone()
    other[:, 1] += 0.1
    assert float(psnr(other, reference)) == pytest.approx(23.0103, abs=1e-3)
    (row,) = fidelity(other, reference)
    assert row["psnr"] == pytest.approx(23.0103, abs=1e-3)
    assert row["frames"]["psnr"] == [99.0, pytest.approx(20.0, abs=1e-3)]


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
    found = frechet_distance(first, second)
    assert found == pytest.approx(0.25 + 1.0 + 0.0 + 4.0, abs=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_of_many_features() -> None:
    """Against the root by eigenvalues of a symmetric product, for features that depend on each other."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(2, 12, 12, generator=generator, dtype=torch.float64)
    first, second = (torch.randn(300, 12, generator=generator, dtype=torch.float64) @ mixing[i] + i for i in range(2))
    a, b = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    trace = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    wanted = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * trace
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-6)
    with pytest.raises(UsageError, match="1 and 300 images: a distance between sets needs at least 2 of each"):
        frechet_distance(first[:1], second)


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
    with pytest.raises(UsageError, match="1 and 5 images"):
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
