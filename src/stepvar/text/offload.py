"""Where the weights of a large text encoder rest, and where they work."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stepvar.errors import UsageError

Self = TypeVar("Self", bound="OffloadableEncoder")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class OffloadableEncoder:
    """Base of the encoders that run a model of ``transformers``.

    Args:
        name: of the model, for errors.
        model: on the CPU, in ``dtype``.
    """

    def __init__(self, name: str, model: nn.Module, dtype: torch.dtype, device: str | torch.device) -> None:
        self.name = name
        self._model: nn.Module | None = model
        self._dtype = dtype
        self._device = torch.device("cpu")
        self._offloaded = False
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the work is done and the features appear."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; the features are float32."""
        return self._dtype

    def to(self: Self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the weights to a device or a precision, in place.

        Under :meth:`enable_offload` the device stays the one chosen there, so that moving a whole pipeline does not
        undo it. A precision once lost does not come back: load again for a higher one.

        Raises:
            UsageError: for another precision than float32, bfloat16 or float16.
        """
        if dtype is not None:
            check_dtype(dtype)
            self._dtype = dtype
        if device is not None and not self._offloaded:
            self._device = torch.device(device)
        if self._model is not None:
            self._model.to("cpu" if self._offloaded else self._device)
            self._cast(self._model)
        return self

    def enable_offload(self: Self, execution_device: str | torch.device) -> Self:
        """Lets the weights rest on the CPU, and the work be done on ``execution_device``.

        - ``enable_offload("cuda")``: each call of ``encode`` copies the weights to the device and drops the copy
          when it is done. Nothing travels back. For a graphics card that cannot hold text encoder and image model.
        - ``enable_offload("cpu")``: encodes on the CPU; only the features travel to the image model. For a card
          that has no room for the text encoder at all; slower.

        Wrap the encoder in :class:`~stepvar.text.CachedEncoder` so that repeated prompts cost neither.
        """
        self._device = torch.device(execution_device)
        self._offloaded = True
        return self.to()

    def disable_offload(self: Self) -> Self:
        """Lets the weights rest where the work is done again."""
        self._offloaded = False
        return self.to()

    def free(self) -> None:
        """Drops the weights. Prompts can no longer be encoded; features made before stay valid."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _cast(self, model: nn.Module) -> None:
        """Brings the weights to the precision."""
        for weight in model.parameters():
            weight.data = weight.data.to(self._dtype)

    def _run(self, tokens: Tensor, read: Tensor) -> Tensor:
        """tokens (B, L), read (B, L) false on padding -> last hidden states (B, L, C) in float32.

        Raises:
            UsageError: after :meth:`free`.
        """
        if self._model is None:
            raise UsageError(f"the weights of {self.name} were freed: load the text encoder again")
        inputs: dict[str, Any] = {
            "input_ids": tokens.to(self._device),
            "attention_mask": read.to(self._device).long(),
        }
        if not self._offloaded:
            hidden: Tensor = self._model(**inputs).last_hidden_state
            return hidden.float()
        # The module keeps its weights on the CPU and works with a copy that lives as long as this call.
        kept = (*self._model.named_parameters(), *self._model.named_buffers())
        visiting = {name: tensor.to(self._device, non_blocking=True) for name, tensor in kept}
        visited: Tensor = functional_call(self._model, visiting, kwargs=inputs).last_hidden_state
        return visited.float()


def check_dtype(dtype: torch.dtype) -> None:
    """Raises a UsageError for a precision that text encoders cannot run in."""
    if dtype not in _DTYPES:
        raise UsageError(f"dtype={dtype}: must be one of {', '.join(str(known) for known in _DTYPES)}")
