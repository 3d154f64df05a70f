"""Text features, and what an encoder of prompts looks like from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.errors import UsageError
from stepvar.utils.device import to_device_async


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts.

    Attributes:
        features: (B, L, C), padded behind each prompt's length.
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
        """The batches one behind the other, padded to the longest; always a copy."""
        return TextFeatures.pack([row for one in several for row in one.rows()])

    @staticmethod
    def join(first: TextFeatures, second: TextFeatures) -> TextFeatures:
        """Both batches in one, padded to the longer."""
        length = max(first.features.shape[1], second.features.shape[1])
        padded = [F.pad(f, (0, 0, 0, length - f.shape[1])) for f in (first.features, second.features)]
        return TextFeatures(torch.cat(padded), first.lengths + second.lengths)

    @staticmethod
    def pack(rows: Sequence[Tensor]) -> TextFeatures:
        """Prompts (length, C), one tensor each, as a batch padded with zeros to the longest; always a copy."""
        return TextFeatures(pad_sequence(list(rows), batch_first=True), tuple(len(row) for row in rows))

    @staticmethod
    def from_embeddings(
        embeddings: Tensor | Sequence[Tensor],
        lengths: Sequence[int] | None = None,
        *,
        channels: int | None = None,
        check_finite: bool = True,
    ) -> TextFeatures:
        """Features from embeddings computed elsewhere: the last hidden states of the model's own text encoder.

        Args:
            embeddings: (L, C) of one prompt, (B, L, C) of a batch, or a list with a tensor (L_i, C) per prompt.
            lengths: tokens of each prompt, the end mark counted; what lies behind is dropped. None: all rows count.
            channels: C that the model needs; None: whatever is given.
            check_finite: refuse NaN and infinity; waits for the device once.

        Raises:
            UsageError: for shapes, types or lengths that cannot be used.
        """
        rows = _rows(embeddings)
        for row in rows:
            _check_row(row, rows[0], channels)
        packed = TextFeatures.pack([row[:length] for row, length in zip(rows, _lengths(lengths, rows), strict=True)])
        if check_finite and not packed.features.isfinite().all():
            raise UsageError("embeddings: hold NaN or infinity; was the text encoder run in float16?")
        return packed


BUCKETS = (32, 64, 128, 256, 512)


def text_bucket(length: int, longest: int) -> int:
    """The number of tokens that a text is padded to: one of a few, so that other texts fit in its place."""
    return min(next((bucket for bucket in BUCKETS if bucket >= length), longest), longest)


def pad_to_device(text: TextFeatures, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Features (B, length, C) on a device, padded with zeros."""
    padded = F.pad(text.features, (0, 0, 0, length - text.features.shape[1]))
    return to_device_async(padded, device).to(dtype) if padded.device != device else padded.to(dtype)


class Features(Protocol):
    """What an encoder makes of a batch of prompts."""

    def __len__(self) -> int: ...

    def split(self) -> Sequence[Any]:
        """One batch of one per prompt: copies on the CPU."""
        ...

    @staticmethod
    def stack(several: Any) -> Any:
        """Such batches one behind the other; always a copy."""
        ...


FeaturesT = TypeVar("FeaturesT", bound=Features)
Features_co = TypeVar("Features_co", bound=Features, covariant=True)


class Encoder(Protocol[Features_co]):
    """Turns prompts into features; all encoders look alike from outside."""

    def encode(self, prompts: Sequence[str]) -> Features_co: ...

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Encoder[Features_co]: ...


TextEncoder = Encoder[TextFeatures]
"""An encoder of as many features as a prompt has tokens; that of the embedded model and T5."""


def _rows(embeddings: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One tensor per prompt, not yet checked."""
    if isinstance(embeddings, Tensor):
        if embeddings.ndim not in (2, 3):
            raise UsageError(f"embeddings {tuple(embeddings.shape)}: must be (L, C) or (B, L, C)")
        rows = [embeddings] if embeddings.ndim == 2 else list(embeddings)
    else:
        rows = list(embeddings)
    if not rows:
        raise UsageError("embeddings: hold no prompt; give at least one")
    return rows


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


def _lengths(lengths: Sequence[int] | None, rows: Sequence[Tensor]) -> list[int]:
    if lengths is None:
        return [len(row) for row in rows]
    if len(lengths) != len(rows):
        raise UsageError(f"lengths: {len(lengths)} given for {len(rows)} prompts; give one each")
    for length, row in zip(lengths, rows, strict=True):
        if not 1 <= length <= len(row):
            raise UsageError(f"lengths: {length} for a prompt of {len(row)} rows; must be between 1 and {len(row)}")
    return [int(length) for length in lengths]
