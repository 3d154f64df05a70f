"""Prompts that come again are not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic

import torch

from stepvar.errors import UsageError
from stepvar.text.features import Encoder, FeaturesT


class CachedEncoder(Generic[FeaturesT]):
    """Keeps the features of the last prompts, and encodes only what it has not seen.

    Features are kept and returned on the CPU, whatever the device of the encoder: the cache takes no memory of the
    device and outlives the encoder's moves, its offloading and its ``free``. A prompt of 50 tokens takes 0.4 MB
    with Flan-T5-XL. A repeated prompt gives the very numbers of the first time, and none of its warnings again.

    Args:
        encoder: the encoder to ask; reachable as ``.encoder``.
        size: prompts kept; the one not used for longest goes first.

    Raises:
        UsageError: if ``size`` is below 1.
    """

    def __init__(self, encoder: Encoder[FeaturesT], size: int = 64) -> None:
        if size < 1:
            raise UsageError(f"size={size}: must be at least 1; use the encoder itself to keep nothing")
        self.encoder: Encoder[FeaturesT] = encoder
        self.size = size
        self._rows: OrderedDict[str, FeaturesT] = OrderedDict()

    def __len__(self) -> int:
        """Prompts kept now."""
        return len(self._rows)

    def encode(self, prompts: Sequence[str]) -> FeaturesT:
        """Features of the prompts, on the CPU; those not kept yet are encoded in one batch.

        Raises:
            UsageError: as the encoder does; what was kept stays.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        found = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        unseen = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if unseen:
            found |= zip(unseen, self.encoder.encode(unseen).split(), strict=True)
        for prompt in prompts:
            self._rows[prompt] = found[prompt]
            self._rows.move_to_end(prompt)
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)
        rows = [found[prompt] for prompt in prompts]
        return rows[0].stack(rows)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CachedEncoder[FeaturesT]:
        """Moves the encoder; another precision makes other numbers, so it empties the cache."""
        self.encoder.to(device=device, dtype=dtype)
        if dtype is not None:
            self.clear()
        return self

    def clear(self) -> None:
        """Forgets all prompts; needed after a change of the encoder's weights."""
        self._rows.clear()
