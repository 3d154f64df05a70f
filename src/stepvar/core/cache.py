"""Keys and values of the scales computed so far, in buffers that are allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.errors import UsageError


class KVCache:
    """One (rows, heads, capacity, head_dim) pair of buffers per layer.

    The capacity of a layer is the number of tokens that it will see in the whole generation, which is known
    beforehand: no buffer grows, and the views handed to attention have shapes known on the host.

    Args:
        capacities: tokens that each layer will see.
        rows: guidance branches times samples. Later scales may use fewer rows, those of one branch, when
            the other is no longer needed.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shapes = [(rows, heads, capacity, head_dim) for capacity in capacities]
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.lengths = [0] * len(shapes)
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def place(self, layer: int, rows: slice, count: int, keys: Tensor, values: Tensor) -> None:
        """Stores the first ``count`` keys and values of rows that do not compute them with the others.

        The other rows append as many after this call; no length changes here.

        Args:
            keys, values: (R or 1, heads, count or 1, head_dim); what is 1 is repeated.
        """
        self.keys[layer][rows, :, :count] = keys
        self.values[layer][rows, :, :count] = values

    def append(self, layer: int, keys: Tensor, values: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """Stores keys and values (R, heads, N, head_dim) of new tokens and returns those of all tokens so far.

        Args:
            rows: the rows of the buffers that they belong to; None: the first ones.

        Raises:
            UsageError: if more tokens arrive than were planned for the layer.
        """
        rows = slice(0, len(keys)) if rows is None else rows
        start, end = self._extend(layer, keys.shape[2])
        self.keys[layer][rows, :, start:end] = keys
        self.values[layer][rows, :, start:end] = values
        return self.read(layer, rows)

    def reserve(self, layer: int, count: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Room for ``count`` more tokens of a layer, to be written by the caller.

        Returns:
            Views for the keys and the values of the new tokens (R, heads, count, head_dim), and views of the keys and
            the values of all tokens so far, the new ones included.

        Raises:
            UsageError: if more tokens arrive than were planned for the layer.
        """
        start, end = self._extend(layer, count)
        keys, values = self.keys[layer][rows, :, :end], self.values[layer][rows, :, :end]
        return keys[:, :, start:], values[:, :, start:], keys, values

    def _extend(self, layer: int, count: int) -> tuple[int, int]:
        start, end = self.lengths[layer], self.lengths[layer] + count
        capacity = self.keys[layer].shape[2]
        if end > capacity:
            raise UsageError(
                f"layer {layer}: {end} tokens exceed the {capacity} planned; the method's tokens_at() is too low"
            )
        self.lengths[layer] = end
        return start, end

    def read(self, layer: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far."""
        end = self.lengths[layer]
        return self.keys[layer][rows, :, :end], self.values[layer][rows, :, :end]

    def forget(self, layer: int, length: int) -> None:
        """Drops all tokens of a layer but the first ``length``; others will take their place."""
        self.lengths[layer] = min(self.lengths[layer], length)
