"""Linear layers whose weights are stored in eight bits, and what a block needs of such layers and of ordinary ones.

"int8" is weight-only: the weight is brought back to the layer's format for each product, so it saves memory and no
arithmetic. "fp8" multiplies in fp8: what enters the product is quantised token by token, where it is made if possible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.errors import UsageError
from stepvar.kernels import fp8, ops
from stepvar.kernels.fp8 import Quantised

Quantization = Literal["fp8", "int8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

Rows: TypeAlias = Tensor | Quantised
"""What a layer multiplies: rows (..., C) in its own format, or quantised."""

INT8_MAX = 127


def int8_rows(weight: Tensor) -> Quantised:
    """A matrix (N, C) in int8, each row divided by its largest magnitude over 127 and rounded to the nearest."""
    rows = weight.float()
    scale = (rows.abs().amax(dim=1, keepdim=True) / INT8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return Quantised((rows / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale)


class QuantizedLinear(nn.Linear, ABC):
    """A linear layer whose weight is ``weight * weight_scale``; made from an ordinary one, whose bias it keeps.

    Attributes:
        weight: (outputs, inputs) in eight bits.
        weight_scale: (outputs, 1) in float32.
        dtype: format of the weight that was replaced, of the bias and of the products.
    """

    kind: ClassVar[Quantization]
    stored: ClassVar[torch.dtype]
    weight_scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.training = linear.weight.dtype, linear.training
        weight = linear.weight.detach()
        if weight.is_meta:
            values, scale = torch.empty_like(weight, dtype=self.stored), weight.new_empty(len(weight), 1).float()
        else:
            values, scale = self.quantize(weight)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.register_parameter("bias", linear.bias)

    @staticmethod
    @abstractmethod
    def quantize(weight: Tensor) -> Quantised:
        """A weight (outputs, inputs) with one scale per output channel."""

    @abstractmethod
    def product(self, x: Rows, bias: Tensor | None) -> Tensor:
        """``x W^T + b`` (..., outputs) in :attr:`dtype`, with another bias than the layer's own."""

    def forward(self, input: Rows) -> Tensor:
        return self.product(input, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, quantization={self.kind}, dtype={self.dtype}"


class Int8Linear(QuantizedLinear):
    """A linear layer with its weight in int8; the product is in :attr:`dtype`."""

    kind = "int8"
    stored = torch.int8

    @staticmethod
    def quantize(weight: Tensor) -> Quantised:
        return int8_rows(weight)

    def dequantized(self) -> Tensor:
        """The weight in :attr:`dtype`, for one product."""
        return torch.mul(self.weight, self.weight_scale, out=torch.empty_like(self.weight, dtype=self.dtype))

    def product(self, x: Rows, bias: Tensor | None) -> Tensor:
        assert isinstance(x, Tensor)
        return F.linear(x.to(self.dtype), self.dequantized(), bias)


class FP8Linear(QuantizedLinear):
    """A linear layer with its weight in fp8, multiplied in fp8; see :func:`~stepvar.kernels.fp8.fp8_linear`."""

    kind = "fp8"
    stored = fp8.FP8

    @staticmethod
    def quantize(weight: Tensor) -> Quantised:
        return fp8.quantise_rows(weight)

    def product(self, x: Rows, bias: Tensor | None) -> Tensor:
        rows = x if isinstance(x, Quantised) else fp8.quantise_rows(x)
        return fp8.fp8_linear(rows, Quantised(self.weight, self.weight_scale), bias, self.dtype)


LAYERS: dict[Quantization, type[QuantizedLinear]] = {"int8": Int8Linear, "fp8": FP8Linear}


def quantize_linears(module: nn.Module, kind: Quantization, chosen: Callable[[str], bool] = lambda name: True) -> None:
    """Replaces linear layers of a module in place, one after the other, so that no more than one is there twice.

    Args:
        chosen: which, by their names.
    """
    # Names and not layers: a list of layers would keep all the weights that are replaced.
    names = [name for name, layer in module.named_modules() if type(layer) is nn.Linear and chosen(name)]
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, LAYERS[kind](getattr(module.get_submodule(parent), own)))


def check_quantization(kind: str, device: torch.device | None = None) -> None:
    """Raises a UsageError for an unknown kind, or for fp8 on a device that cannot multiply it; the CPU emulates it."""
    if kind not in QUANTIZATIONS:
        raise UsageError(f"quantization={kind!r}: must be one of {', '.join(QUANTIZATIONS)}")
    if kind != "fp8" or device is None or device.type in ("cpu", "meta") or fp8.has_fp8_products(device):
        return
    capability = ".".join(map(str, ops.compute_capability(device)))
    found = f"{device.type} has none" if capability == "0.0" else f"this one has {capability}"
    raise UsageError(
        f"quantization='fp8': needs an NVIDIA GPU of compute capability 9.0 (Hopper) or higher, {found}; use 'int8'"
    )


def layer_dtype(layer: nn.Linear) -> torch.dtype:
    """The format that a layer computes in."""
    return layer.dtype if isinstance(layer, QuantizedLinear) else layer.weight.dtype


def rows_for(layer: nn.Linear, x: Rows) -> Rows:
    """``x`` in the form that a layer multiplies: for several layers of one kind this is done once."""
    if isinstance(x, Quantised):
        return x
    return fp8.quantise_rows(x) if isinstance(layer, FP8Linear) else x.to(layer_dtype(layer))


def product(layer: nn.Linear, x: Rows, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` of a layer whose bias is kept elsewhere, in the layer's format."""
    x = rows_for(layer, x)
    if isinstance(layer, QuantizedLinear):
        return layer.product(x, bias)
    assert isinstance(x, Tensor)
    return F.linear(x, layer.weight, bias)


def product_gelu(layer: nn.Linear, x: Rows) -> Rows:
    """``gelu(x W^T + b)`` in its tanh form, for a second layer of the same kind."""
    if isinstance(layer, FP8Linear):
        return fp8.gelu_quantised(layer(x))
    assert isinstance(x, Tensor)
    weight = layer.dequantized() if isinstance(layer, Int8Linear) else layer.weight
    return ops.linear_gelu(x, weight, layer.bias)


def products_swiglu(gate: nn.Linear, up: nn.Linear, x: Rows) -> Rows:
    """``silu(x G^T) * x U^T``, for a third layer of the same kind."""
    combined = fp8.swiglu_quantised if isinstance(gate, FP8Linear) else ops.swiglu
    return combined(gate(x), up(x))
