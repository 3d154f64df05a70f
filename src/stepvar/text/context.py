"""Text features of a fixed number of tokens, padding included, for models that attend to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepvar.errors import UsageError


@dataclass(frozen=True)
class ContextFeatures:
    """Features of a batch of prompts, each of exactly T tokens.

    Attributes:
        features: (B, T, C), also of the padding.
        mask: (B, T) bool, true on what is no padding.
        places: (B, T) int64, the place of each token among the words; see :meth:`of`.
    """

    features: Tensor
    mask: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(cls, features: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> ContextFeatures:
        """Features (B, T, C) or (T, C) of one prompt, checked.

        Args:
            mask: (B, T), true or 1 on words; None: everywhere.
            places: (B, T); None: words are counted from 0, padding behind them repeats the last place, and padding in
                front of them is at -1.

        Raises:
            UsageError: for shapes or types that cannot be used, or features that are not finite.
        """
        features = features.unsqueeze(0) if features.ndim == 2 else features
        if features.ndim != 3 or not features.is_floating_point() or 0 in features.shape:
            raise UsageError(
                f"text features of shape {tuple(features.shape)} and {features.dtype}: must be (T, C) or (B, T, C), "
                "floating point"
            )
        if not features.isfinite().all():
            raise UsageError("text features: hold NaN or infinity; was the text encoder run in float16?")
        size = features.shape[:2]
        mask = torch.ones(size, dtype=torch.bool, device=features.device) if mask is None else mask
        mask = mask.bool().view(-1, mask.shape[-1])
        places = mask.cumsum(dim=1) - 1 if places is None else places.view(-1, places.shape[-1])
        for name, given in (("mask", mask), ("places", places)):
            if given.shape != size:
                raise UsageError(f"{name} of shape {tuple(given.shape)}: must be {tuple(size)}, as the features are")
        return cls(features, mask.to(features.device), places.to(features.device))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> ContextFeatures:
        """On a device; the features in a number format."""
        return ContextFeatures(self.features.to(device, dtype), self.mask.to(device), self.places.to(device))

    def repeat(self, times: int) -> ContextFeatures:
        """Each prompt ``times`` times in a row."""
        return ContextFeatures(*(part.repeat_interleave(times, dim=0) for part in self._parts))

    def split(self) -> list[ContextFeatures]:
        """One batch of one per prompt: copies on the CPU."""
        parts = [part.detach().to("cpu", copy=True).split(1) for part in self._parts]
        return [ContextFeatures(*own) for own in zip(*parts, strict=True)]

    @staticmethod
    def stack(several: Sequence[ContextFeatures]) -> ContextFeatures:
        """The batches one behind the other; always a copy."""
        return ContextFeatures(*(torch.cat(parts) for parts in zip(*(one._parts for one in several), strict=True)))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.mask, self.places
