"""Text features, and what an encoder of prompts looks like from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.errors import UsageError
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts, as many tokens as each prompt has.

    Attributes:
        features: (B, L, C), padded after each prompt's length.
        lengths: tokens of each prompt, on the host.
    """

    features: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device, dtype: torch.dtype) -> TextFeatures:
        return TextFeatures(self.features.to(device, dtype), self.lengths)

    def repeat(self, times: int) -> TextFeatures:
        """Each prompt ``times`` times in a row."""
        lengths = tuple(length for length in self.lengths for _ in range(times))
        return TextFeatures(self.features.repeat_interleave(times, dim=0), lengths)

    def rows(self) -> list[Tensor]:
        """The features of each prompt, without padding: B views (length, C)."""
        return [self.features[index, :length] for index, length in enumerate(self.lengths)]

    def split(self) -> list[TextFeatures]:
        """One batch of one per prompt: copies on the CPU, without padding (a view would keep that alive)."""
        return [TextFeatures.pack([row.detach().to("cpu")]) for row in self.rows()]

    @staticmethod
    def stack(several: Sequence[TextFeatures]) -> TextFeatures:
        """The batches one after the other, padded to the longest; always a copy."""
        return TextFeatures.pack([row for one in several for row in one.rows()])

    @staticmethod
    def pack(rows: Sequence[Tensor]) -> TextFeatures:
        """Prompts (length, C), one tensor each, as a batch padded with zeros to the longest; always a copy."""
        return TextFeatures(pad_sequence(list(rows), batch_first=True), tuple(len(row) for row in rows))

    @staticmethod
    def from_embeddings(embeddings: Tensor | Sequence[Tensor], *, channels: int | None = None) -> TextFeatures:
        """Features from embeddings computed elsewhere: the last hidden states of the model's own text encoder.

        Args:
            embeddings: (L, C) of one prompt, (B, L, C) of a batch, or a list with a tensor (L_i, C) per prompt.
                Every row counts as a token: leave out padding.
            channels: C that the model needs; None: whatever is given.

        Raises:
            UsageError: for shapes or types that cannot be used, or embeddings that are not finite.
        """
        if isinstance(embeddings, Tensor) and embeddings.ndim not in (2, 3):
            raise UsageError(f"embeddings {tuple(embeddings.shape)}: must be (L, C) or (B, L, C)")
        rows = [embeddings] if isinstance(embeddings, Tensor) and embeddings.ndim == 2 else list(embeddings)
        if not rows:
            raise UsageError("embeddings: hold no prompt; give at least one")
        for row in rows:
            _check_row(row, rows[0], channels)
        packed = TextFeatures.pack(rows)
        _check_finite("embeddings", packed.features)
        return packed


BUCKETS = (32, 64, 128, 256, 512)


def text_bucket(length: int, longest: int) -> int:
    """The number of tokens that a text is padded to: one of a few, so that other texts fit in its place."""
    return min(next((bucket for bucket in BUCKETS if bucket >= length), longest), longest)


def length_mask(lengths: Sequence[int], size: int) -> Tensor:
    """Which of ``size`` tokens are there, for texts of these lengths: (B, 1, 1, size), on the CPU."""
    return (torch.arange(size) < torch.tensor(list(lengths))[:, None])[:, None, None, :]


def pad_to_device(text: TextFeatures, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Features (B, length, C) on a device, padded with zeros."""
    features = to_device_async(text.features, device).to(dtype)  # padded there: less to pin and to copy
    return F.pad(features, (0, 0, 0, length - features.shape[1]))


@dataclass(frozen=True)
class ContextFeatures:
    """Features of a batch of prompts of exactly T tokens each, for models that attend to the padding, too.

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

    @staticmethod
    def of(features: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> ContextFeatures:
        """Features (B, T, C) or (T, C) of one prompt, checked.

        Args:
            mask: (B, T), true or 1 on words; None: everywhere.
            places: (B, T); None: words are counted from 0, padding after them repeats the last place, and padding
                before them is at -1.

        Raises:
            UsageError: for shapes or types that cannot be used, or features that are not finite.
        """
        features = features.unsqueeze(0) if features.ndim == 2 else features
        if features.ndim != 3 or not features.is_floating_point() or 0 in features.shape:
            raise UsageError(
                f"text features of shape {tuple(features.shape)} and {features.dtype}: must be (T, C) or (B, T, C), "
                "floating point"
            )
        _check_finite("text features", features)
        size = features.shape[:2]
        mask = torch.ones(size, dtype=torch.bool, device=features.device) if mask is None else mask
        mask = mask.bool().view(-1, mask.shape[-1])
        places = mask.cumsum(dim=1) - 1 if places is None else places.view(-1, places.shape[-1])
        for name, given in (("mask", mask), ("places", places)):
            if given.shape != size:
                raise UsageError(f"{name} of shape {tuple(given.shape)}: must be {tuple(size)}, as the features are")
        return ContextFeatures(features, mask.to(features.device), places.to(features.device))

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
        """The batches one after the other; always a copy."""
        return ContextFeatures(*(torch.cat(parts) for parts in zip(*(one._parts for one in several), strict=True)))

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.mask, self.places


@dataclass(frozen=True)
class PooledFeatures:
    """Features of a batch of prompts, and of each prompt one vector.

    Attributes:
        text: the features of the tokens.
        pooled: (B, P).
    """

    text: TextFeatures
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.text)

    @staticmethod
    def of(
        embeddings: Tensor | Sequence[Tensor],
        pooled: Tensor,
        *,
        channels: int | None = None,
        pooled_channels: int | None = None,
    ) -> PooledFeatures:
        """Features computed elsewhere, checked.

        Args:
            embeddings: as for :meth:`TextFeatures.from_embeddings`.
            pooled: (B, P), or (P,) of one prompt.
            channels, pooled_channels: C and P that the model needs; None: whatever is given.

        Raises:
            UsageError: for shapes or types that cannot be used, or features that are not finite.
        """
        text = TextFeatures.from_embeddings(embeddings, channels=channels)
        if not isinstance(pooled, Tensor) or not pooled.is_floating_point() or pooled.ndim not in (1, 2):
            raise UsageError("pooled embeddings: must be a tensor (B, P), or (P,) of one prompt, floating point")
        pooled = pooled.view(-1, pooled.shape[-1])
        if len(pooled) != len(text) or pooled.shape[1] != (pooled_channels or pooled.shape[1]):
            wanted = f"({len(text)}, {pooled_channels or 'P'})"
            raise UsageError(f"pooled embeddings of shape {tuple(pooled.shape)}: must be {wanted}")
        _check_finite("pooled embeddings", pooled)
        return PooledFeatures(text, pooled)

    def repeat(self, times: int) -> PooledFeatures:
        """Each prompt ``times`` times in a row."""
        return PooledFeatures(self.text.repeat(times), self.pooled.repeat_interleave(times, dim=0))

    def split(self) -> list[PooledFeatures]:
        """One batch of one per prompt: copies on the CPU."""
        pooled = self.pooled.detach().to("cpu", copy=True).split(1)
        return [PooledFeatures(*own) for own in zip(self.text.split(), pooled, strict=True)]

    @staticmethod
    def stack(several: Sequence[PooledFeatures]) -> PooledFeatures:
        """The batches one after the other; always a copy."""
        text = TextFeatures.stack([one.text for one in several])
        return PooledFeatures(text, torch.cat([one.pooled for one in several]))


FeaturesT = TypeVar("FeaturesT", TextFeatures, ContextFeatures, PooledFeatures)
Features_co = TypeVar("Features_co", TextFeatures, ContextFeatures, PooledFeatures, covariant=True)


class Encoder(Protocol[Features_co]):
    """Turns prompts into features; all encoders look alike from outside."""

    def encode(self, prompts: Sequence[str]) -> Features_co: ...

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Encoder[Features_co]: ...


TextEncoder = Encoder[TextFeatures]
"""An encoder of as many features as a prompt has tokens; that of the embedded model and T5."""


def _check_row(row: Tensor, first: Tensor, channels: int | None) -> None:
    if not isinstance(row, Tensor) or row.ndim != 2 or 0 in row.shape:
        given = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
        raise UsageError(f"embeddings: {given} for a prompt; must be a tensor (L, C) with at least one token")
    if not row.is_floating_point():
        raise UsageError(f"embeddings of {row.dtype}: must be floating point; token numbers are not embeddings")
    if channels is not None and row.shape[1] != channels:
        raise UsageError(f"embeddings of {row.shape[1]} channels: this model needs {channels}")
    for name, own, other in (
        ("channels", row.shape[1], first.shape[1]),
        ("dtype", row.dtype, first.dtype),
        ("device", row.device, first.device),
    ):
        if own != other:
            raise UsageError(f"embeddings: prompts differ in {name}, {other} and {own}; make them equal")


def _check_finite(name: str, features: Tensor) -> None:
    if not features.isfinite().all():
        raise UsageError(f"{name}: hold NaN or infinity; was the text encoder run in float16?")
