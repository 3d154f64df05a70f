"""Causal convolutions as 2D convolutions over three frames side by side, where that is the faster way on a GPU.

How fast the libraries' 3D convolutions are in bfloat16 differs widely between versions; 2D ones are always good.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.models.infinity_star.video_layers import CausalConv, Past
from stepvar.models.precision import for_weight

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, C, F + 2, H, W), weight (O, C, 3, 3, 3) -> (B, O, F, H, W)."""
    return F.conv3d(x, weight, bias, padding=(0, 1, 1))


def folded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same, with the three frames that each frame looks at as channels of one image."""
    batch, frames = x.shape[0], x.shape[2] - 2
    images = torch.cat([x[:, :, start : start + frames] for start in range(3)], dim=1)
    images = images.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    kernel = weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, kernel, bias, padding=1).unflatten(0, (batch, frames)).transpose(1, 2)


def seconds_of(convolution: Convolution, channels: int, side: int, frames: int, device: torch.device) -> float:
    """Time of a forward and a backward pass, behind two for the choice of an algorithm."""
    x = torch.randn(8, channels, frames + 2, side, side, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(channels, device=device, dtype=torch.bfloat16, requires_grad=True)
    start = 0.0
    for step in range(7):
        if step == 2:
            torch.cuda.synchronize(device)
            start = time.perf_counter()
        convolution(x, weight, bias).sum().backward()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def folding_is_faster(device: torch.device, layers: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether 2D convolutions are the faster way on a device, for layers of (channels, side, frames)."""
    if device.type != "cuda":
        return False
    torch.backends.cudnn.benchmark = True
    spent = {way.__name__: sum(seconds_of(way, *layer, device) for layer in layers) for way in (whole, folded)}
    print(f"convolutions: {', '.join(f'{name} {1000 * value:.1f} ms' for name, value in spent.items())}", flush=True)
    return spent["folded"] < spent["whole"]


class FoldedConv(nn.Module):
    """A causal convolution computed as a 2D one, with the weights of the layer that it stands for and their names."""

    def __init__(self, layer: CausalConv) -> None:
        super().__init__()
        self.conv = layer.conv

    def forward(self, x: Tensor, past: Past) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        return folded(past.extend(self, for_weight(x, weight)), weight, bias)


def fold_convolutions(module: nn.Module) -> None:
    """Puts a :class:`FoldedConv` in the place of every causal convolution inside a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CausalConv):
                setattr(parent, name, FoldedConv(child))
