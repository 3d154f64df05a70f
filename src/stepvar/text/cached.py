"""Prompts that come again are not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.text.features import TextEncoder, TextFeatures


class CachedEncoder:
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

    def __init__(self, encoder: TextEncoder, size: int = 64) -> None:
        if size < 1:
            raise UsageError(f"size={size}: must be at least 1; use the encoder itself to keep nothing")
        self.encoder = encoder
        self.size = size
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """Prompts kept now."""
        return len(self._rows)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of the prompts, on the CPU; those not kept yet are encoded in one batch.

        Raises:
            UsageError: as the encoder does; what was kept stays.
        """
        if not prompts:
            raise UsageError("prompts: none given")
        found = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        unseen = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if unseen:
            # Copies: a view would keep the padding of the whole batch alive.
            rows = [row.detach().to("cpu", copy=True) for row in self.encoder.encode(unseen).rows()]
            found |= zip(unseen, rows, strict=True)
        for prompt in prompts:
            self._rows[prompt] = found[prompt]
            self._rows.move_to_end(prompt)
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)
        return TextFeatures.pack([found[prompt] for prompt in prompts])

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> CachedEncoder:
        """Moves the encoder; another precision makes other numbers, so it empties the cache."""
        self.encoder.to(device=device, dtype=dtype)
        if dtype is not None:
            self.clear()
        return self

    def clear(self) -> None:
        """Forgets all prompts; needed after a change of the encoder's weights."""
        self._rows.clear()
