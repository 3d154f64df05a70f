"""Keys and values of the scales computed so far, in buffers that are allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.errors import UsageError


class Buffers:
    """Keys or values of each layer: (rows, heads, capacity, head_dim), in the format that they are computed in.

    Attributes:
        first_row: the first row that is held; rows are counted as one process has them.
    """

    first_row = 0

    def __init__(
        self, capacities: Sequence[int], rows: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [
            torch.empty(rows, heads, capacity, head_dim, dtype=dtype, device=device) for capacity in capacities
        ]

    def _held(self, rows: slice) -> slice:
        """Where some rows stand in the buffers."""
        if not self.first_row:
            return rows
        assert rows.start >= self.first_row  # below, they would be counted from the end
        return slice(rows.start - self.first_row, rows.stop - self.first_row)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def write(self, layer: int, rows: slice, start: int, end: int, entries: Tensor) -> None:
        """Stores entries (R or 1, heads, N or 1, head_dim) at ``start`` to ``end``; what is 1 is repeated."""
        self.layers[layer][self._held(rows), :, start:end] = entries

    def read(self, layer: int, rows: slice, start: int, end: int) -> Tensor:
        """Entries ``start`` to ``end`` of a layer (R, heads, end - start, head_dim)."""
        return self.layers[layer][self._held(rows), :, start:end]

    def keep(self, layer: int, rows: slice, start: int, end: int, entries: Tensor) -> None:
        """Stores entries that were written into the end of what :meth:`read` gave: here they are in place already."""

    def select(self, layer: int, rows: slice, base: int, stored: int, index: Tensor, entries: Tensor) -> None:
        """Stores those at ``index`` (R, heads, K) of entries (R, heads, N, head_dim) from ``base`` on, no others.

        Args:
            stored: how many of the entries are stored there already, the first ones.
        """
        self.layers[layer][self._held(rows), :, base : base + index.shape[-1]] = _picked(entries, index)


class QuantizedBuffers(Buffers):
    """Keys or values in eight bits, each head of each token with a scale of its own, in float32.

    They are read in the format that they were computed in, one layer at a time. A pass sees its own entries unrounded.
    """

    def __init__(
        self, capacities: Sequence[int], rows: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(capacities, rows, heads, head_dim, torch.int8, device)
        self.scales = [torch.empty(*layer.shape[:3], 1, device=device) for layer in self.layers]
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(scale.nbytes for scale in self.scales)

    def write(self, layer: int, rows: slice, start: int, end: int, entries: Tensor) -> None:
        rounded, scale = _quantise(entries)
        rows = self._held(rows)
        self.layers[layer][rows, :, start:end] = rounded
        self.scales[layer][rows, :, start:end] = scale

    def read(self, layer: int, rows: slice, start: int, end: int) -> Tensor:
        seen = (self._held(rows), slice(None), slice(start, end))
        return self.layers[layer][seen].to(self.dtype).mul_(self.scales[layer][seen])

    def keep(self, layer: int, rows: slice, start: int, end: int, entries: Tensor) -> None:
        self.write(layer, rows, start, end, entries)

    def select(self, layer: int, rows: slice, base: int, stored: int, index: Tensor, entries: Tensor) -> None:
        """What is stored already is moved as it is, so that it is rounded once."""
        rows = self._held(rows)
        for buffer, new in zip(
            (self.layers[layer], self.scales[layer]), _quantise(entries[:, :, stored:]), strict=True
        ):
            held = torch.cat([buffer[rows, :, base : base + stored], new], dim=2)
            buffer[rows, :, base : base + index.shape[-1]] = _picked(held, index)


def _quantise(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (R, heads, N, D) as int8, and their scales (R, heads, N, 1)."""
    scale = entries.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / 127
    return (entries / scale).round_().to(torch.int8), scale


def _picked(entries: Tensor, index: Tensor) -> Tensor:
    """Those at ``index`` (R, heads, K) of entries (R, heads, N, D)."""
    return entries.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, entries.shape[-1]))


class KVCache:
    """One (rows, heads, capacity, head_dim) pair of buffers per layer.

    The capacity of a layer is the largest number of tokens that later passes read of it, which is known beforehand: no
    buffer grows, and the views handed to attention have shapes known on the host. At a pass behind which some tokens
    leave a layer (:meth:`start_pass`), those of the layer stand together in tensors of their own while it runs.

    Args:
        capacities: tokens that each layer will store at most.
        rows: guidance branches times samples. Later scales may use fewer rows, those of one branch, when
            the other is no longer needed.
        dtype: of the keys and values that are stored and read.
        quantized: whether they are stored in eight bits; see :class:`QuantizedBuffers`.
        first_row: the first row that is held, where another process has those before it. All methods count rows as one
            process has them.

    Attributes:
        starts, lengths: of each layer, the first entry that is read, and the one behind the last.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        quantized: bool = False,
        first_row: int = 0,
    ) -> None:
        kind = QuantizedBuffers if quantized else Buffers
        self._keys, self._values = (kind(capacities, rows, heads, head_dim, dtype, device) for _ in range(2))
        self._keys.first_row = self._values.first_row = first_row
        self._capacities = tuple(capacities)
        self.rows = rows
        self.lengths = [0] * len(capacities)
        self.starts = [0] * len(capacities)
        self._rooms = [0] * len(capacities)
        self.dtype = dtype
        self._dropped: Sequence[int] = ()

    @property
    def keys(self) -> list[Tensor]:
        """The buffers of the keys, in the format that they are stored in; none once they are freed."""
        return self._keys.layers

    @property
    def values(self) -> list[Tensor]:
        """As :attr:`keys`."""
        return self._values.layers

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def free(self) -> None:
        """Drops the buffers: no pass will follow."""
        self._keys, self._values = (Buffers((), 0, 0, 0, self.dtype, torch.device("cpu")) for _ in range(2))

    def start_pass(self, dropped: Sequence[int]) -> None:
        """Says how many tokens leave each layer behind the pass that begins; empty: none.

        Of a layer that some leave, :meth:`reserve` stores nothing: :meth:`select` does, if a later pass reads it.
        """
        self._dropped = dropped

    def _some_leave(self, layer: int) -> bool:
        return bool(self._dropped) and self._dropped[layer] > 0

    def place(self, layer: int, rows: slice, count: int, keys: Tensor, values: Tensor) -> None:
        """Stores the first ``count`` keys and values of rows that do not compute them with the others.

        The other rows append as many after this call; no length changes here.

        Args:
            keys, values: (R or 1, heads, count or 1, head_dim); what is 1 is repeated.
        """
        self._keys.write(layer, rows, 0, count, keys)
        self._values.write(layer, rows, 0, count, values)

    def leave_room(self, layer: int, count: int) -> None:
        """Keeps the first ``count`` entries of a layer that is still empty for :meth:`put_in_front`."""
        self._rooms[layer] = self.starts[layer] = self.lengths[layer] = count

    def hold(self, layer: int) -> None:
        """Has what a layer holds now stay in front of what follows: :meth:`select` drops none of it."""
        self._rooms[layer] = self.lengths[layer]

    def front(self, layer: int) -> int:
        """How many of the tokens that are read of a layer stand in front of those that may be dropped."""
        return self._rooms[layer] - self.starts[layer]

    def put_in_front(self, layer: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values (R, heads, N, head_dim) in front of all others of a layer.

        They take the place of those that the last call put there, which may have been fewer or more.
        """
        room = self._rooms[layer]
        self.starts[layer] = start = room - keys.shape[2]
        self._keys.write(layer, rows, start, room, keys)
        self._values.write(layer, rows, start, room, values)

    def append(self, layer: int, keys: Tensor, values: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """Stores keys and values (R, heads, N, head_dim) of new tokens and returns those of all tokens so far.

        Args:
            rows: the rows that they belong to; None: the first ones that are held.

        Raises:
            UsageError: if more tokens arrive than were planned for the layer.
        """
        if rows is None:
            rows = slice(self._keys.first_row, self._keys.first_row + len(keys))
        new_keys, new_values, all_keys, all_values = self.reserve(layer, keys.shape[2], rows)
        new_keys.copy_(keys)
        new_values.copy_(values)
        self.keep(layer, rows, new_keys, new_values)
        return all_keys, all_values

    def reserve(self, layer: int, count: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Room for ``count`` more tokens of a layer, to be written by the caller, who then calls :meth:`keep`.

        Returns:
            Views for the keys and the values of the new tokens (R, heads, count, head_dim), and views of the keys and
            the values of all tokens so far, the new ones included.

        Raises:
            UsageError: if more tokens arrive than were planned for the layer.
        """
        if self._some_leave(layer):
            keys, values = (self._joined(part, layer, rows, count) for part in (self._keys, self._values))
        else:
            self._extend(layer, count)
            keys, values = self.read(layer, rows)
        return keys[:, :, -count:], values[:, :, -count:], keys, values

    def keep(self, layer: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Stores the last keys and values of a layer, as they were written into what :meth:`reserve` gave."""
        if self._some_leave(layer):
            return
        end = self.lengths[layer]
        start = end - keys.shape[2]
        self._keys.keep(layer, rows, start, end, keys)
        self._values.keep(layer, rows, start, end, values)

    def _joined(self, part: Buffers, layer: int, rows: slice, count: int) -> Tensor:
        """The entries of a layer so far, and room for ``count`` more behind them, in a tensor of their own."""
        old = part.read(layer, rows, self.starts[layer], self.lengths[layer])
        joined = old.new_empty(*old.shape[:2], old.shape[2] + count, old.shape[3])
        joined[:, :, : old.shape[2]] = old
        return joined

    def _extend(self, layer: int, count: int) -> None:
        end = self.lengths[layer] + count
        capacity = self._capacities[layer]
        if end > capacity:
            raise UsageError(
                f"layer {layer}: {end} tokens exceed the {capacity} planned; the method's tokens_at() is too low"
            )
        self.lengths[layer] = end

    def read(self, layer: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far."""
        start, end = self.starts[layer], self.lengths[layer]
        return self._keys.read(layer, rows, start, end), self._values.read(layer, rows, start, end)

    def select(self, layer: int, rows: slice, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keeps what stands in front, and those of the other tokens of a layer at ``index`` (R, heads, K) of these.

        Each row and head has its own. Rows that do not run any more are not moved: nothing may be read of them
        afterwards.

        Args:
            keys, values: of all tokens, as :meth:`reserve` gave them.
        """
        base, front = self._rooms[layer], self.front(layer)
        stored, self.lengths[layer] = self.lengths[layer] - base, base
        self._extend(layer, index.shape[-1])
        self._keys.select(layer, rows, base, stored, index, keys[:, :, front:])
        self._values.select(layer, rows, base, stored, index, values[:, :, front:])

    def forget(self, layer: int, length: int) -> None:
        """Drops all tokens of a layer but the first ``length``; others will take their place."""
        self.lengths[layer] = min(self.lengths[layer], length)


class NoCache(KVCache):
    """In place of a cache where no pass attends to another one: a pass sees its own keys and values, none are kept."""

    def __init__(self, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__((), 0, heads, head_dim, dtype, device)
        self._shape, self._device = (heads, head_dim), device

    def append(self, layer: int, keys: Tensor, values: Tensor, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        return keys.to(self.dtype), values.to(self.dtype)

    def reserve(self, layer: int, count: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        heads, head_dim = self._shape
        keys, values = torch.empty(
            2, rows.stop - rows.start, heads, count, head_dim, dtype=self.dtype, device=self._device
        )
        return keys, values, keys, values

    def keep(self, layer: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Nothing."""
