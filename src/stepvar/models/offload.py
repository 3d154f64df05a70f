"""Weights that rest on the CPU and visit a device while they are used, for models that do not fit there as a whole.

``"model"``: transformer, decoder and encoder visit one after another. ``"sequential"``: so do the blocks of the
transformer; while one runs, the next one is copied (on CUDA from pinned memory, on a stream of its own). Weights are
copied to the device and never back. The numbers are those of a model that lies on the device as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from stepvar.errors import UsageError

OffloadName = Literal["model", "sequential"]
OFFLOADS: tuple[OffloadName, ...] = get_args(OffloadName)

Part = Literal["loop", "decoder", "encoder"]
"""What visits the device as a whole: the transformer, for the loop over scales; the tokenizer's two halves."""

ALIGNMENT = 256
"""Bytes; more than any kernel asks for."""

SLOTS = 2
"""Blocks that are on the device at a time: one is used while the next one arrives."""


class StreamedModule(nn.Module):
    """Base of the blocks of transformers, which may visit the device one by one."""

    stream: tuple[BlockStream, int] | None = None

    def on_device(self) -> AbstractContextManager[None]:
        """Has the weights on the device for as long as the block of code runs."""
        if self.stream is None:
            return nullcontext()
        stream, index = self.stream
        return stream.visit(index)


Block = TypeVar("Block", bound=StreamedModule)


def in_turn(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks in order, each on the device until the next one is asked for."""
    for block in blocks:
        with block.on_device():
            yield block


class Group:
    """Weights that visit the device together; at rest they lie on the CPU, one after another in one piece of memory.

    Args:
        tensors: parameters and buffers, whose data are replaced.
        pinned: whether they rest in pinned memory, from which copies to a GPU are fast and need not be waited for.
    """

    def __init__(self, tensors: Sequence[Tensor], pinned: bool) -> None:
        self.tensors = list(tensors)
        # Their strides where they are dense, such as transposed; else those of a contiguous tensor.
        self._strides = [torch.empty_like(tensor, device="meta").stride() for tensor in self.tensors]
        *self._starts, self.nbytes = _starts(self.tensors)
        # Weights without data, of a model that only is planned with, rest without data.
        place = "meta" if any(tensor.is_meta for tensor in self.tensors) else "cpu"
        self._resting = torch.empty(self.nbytes, dtype=torch.uint8, device=place, pin_memory=pinned)
        self._views = self._views_of(self._resting)
        for tensor, view in zip(self.tensors, self._views, strict=True):
            view.copy_(tensor)
        self.rest()

    def _views_of(self, memory: Tensor) -> list[Tensor]:
        """The tensors in a piece of memory."""
        views = []
        for tensor, start, strides in zip(self.tensors, self._starts, self._strides, strict=True):
            part = memory[start : start + tensor.nbytes].view(tensor.dtype)
            views.append(part.as_strided(tensor.shape, strides, part.storage_offset()))
        return views

    def copy_to(self, memory: Tensor) -> None:
        """Copies the weights to a piece of memory of the device, of at least :attr:`nbytes`."""
        memory[: self.nbytes].copy_(self._resting, non_blocking=True)

    def use(self, memory: Tensor) -> None:
        """Takes the weights from where they were copied to."""
        self._point(self._views_of(memory))

    def rest(self) -> None:
        """Takes them from the CPU again."""
        self._point(self._views)

    def _point(self, views: Sequence[Tensor]) -> None:
        for tensor, view in zip(self.tensors, views, strict=True):
            tensor.data = view


def device_memory(nbytes: int, device: torch.device) -> Tensor:
    # Not an inference tensor: parameters must not become views of one.
    with torch.inference_mode(False):
        return torch.empty(nbytes, dtype=torch.uint8, device=device)


class Slot:
    """A piece of the device's memory for one block.

    Attributes:
        holds: the index of the group whose weights lie there.
        ready, left: CUDA events: when they have arrived, and when their last use has ended.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.memory = device_memory(nbytes, device)
        self.holds: int | None = None
        self.ready, self.left = (torch.cuda.Event() if device.type == "cuda" else None for _ in range(2))


class BlockStream:
    """Groups that visit the device in a circle through slots: one is used while the next one arrives.

    Other orders are served as well, only not ahead of time.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        self.groups, self.device = groups, device
        self._slots: list[Slot] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def open(self) -> None:
        """Allocates the slots, and begins with the first group."""
        largest = max(group.nbytes for group in self.groups)
        self._slots = [Slot(largest, self.device) for _ in range(min(SLOTS, len(self.groups)))]
        if self._copies is not None:  # what was in that memory before may still be in use
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        self._fetch(0, self._slots[0])

    def close(self) -> None:
        """Frees the slots."""
        for group in self.groups:
            group.rest()
        if self._copies is not None:  # a copy ahead of time may still be running
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        self._slots = []

    @contextmanager
    def visit(self, index: int) -> Iterator[None]:
        """Has a group on the device."""
        slot = self._slot_with(index) or self._fetch(index, self._slots[0])
        if slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        self.groups[index].use(slot.memory)
        following = (index + 1) % len(self.groups)
        if self._slot_with(following) is None:
            self._fetch(following, self._slots[1] if slot is self._slots[0] else self._slots[0])
        try:
            yield
        finally:
            self.groups[index].rest()
            if slot.left is not None:
                slot.left.record(torch.cuda.current_stream(self.device))

    def _slot_with(self, index: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.holds == index), None)

    def _fetch(self, index: int, slot: Slot) -> Slot:
        """Begins to copy a group into a slot, as soon as that is no longer in use."""
        slot.holds = index
        if self._copies is None or slot.left is None or slot.ready is None:
            self.groups[index].copy_to(slot.memory)
            return slot
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(slot.left)
            self.groups[index].copy_to(slot.memory)
            slot.ready.record(self._copies)
        return slot


class Split(NamedTuple):
    """The weights of a model by when they are needed.

    Attributes:
        parts: groups of what visits the device as a whole, with the blocks that are not streamed.
        streamed: the blocks that visit it one by one.
        rest: small weights of the tokenizer that all need: they stay on the device.
    """

    parts: dict[Part, list[list[Tensor]]]
    streamed: list[StreamedModule]
    rest: list[Tensor]


def split(model: Any, name: OffloadName, blocks_on_device: int = 0) -> Split:
    """Which weights visit the device when; arguments as for :class:`Offload`.

    Raises:
        UsageError: if there are not so many blocks.
    """
    blocks, tokenizer = blocks_of(model), model.tokenizer
    if not 0 <= blocks_on_device < len(blocks):
        raise UsageError(f"blocks_on_device={blocks_on_device}: must be from 0 to {len(blocks) - 1} for this model")
    count = 0 if name == "model" else len(blocks) - blocks_on_device
    streamed = [blocks[place * len(blocks) // count] for place in range(count)]  # spread evenly
    decoder, encoder = tensors_of(tokenizer.decoder), tensors_of(tokenizer.encoder)
    placed = {id(tensor) for tensor in (*decoder, *encoder)}.union(*(map(id, tensors_of(block)) for block in blocks))
    loop = [tensors_of(block) for block in blocks if block not in streamed]
    loop.append([tensor for tensor in tensors_of(model.transformer) if id(tensor) not in placed])
    rest = [tensor for tensor in tensors_of(tokenizer) if id(tensor) not in placed]
    return Split({"loop": loop, "decoder": [decoder], "encoder": [encoder]}, streamed, rest)


def weights_on_device(model: Any, name: OffloadName | None, blocks_on_device: int = 0) -> tuple[int, int]:
    """Bytes of weights on the device during the loop over scales, and while decoding.

    Args:
        name: None: nothing is offloaded. The other arguments are those of :class:`Offload`.
    """
    if name is None:
        whole = sum(tensor.nbytes for tensor in tensors_of(model))
        return whole, whole
    parts, streamed, rest = split(model, name, blocks_on_device)
    small = sum(tensor.nbytes for tensor in rest)
    loop, decoder = (sum(_size(group) for group in parts[part]) for part in ("loop", "decoder"))
    slots = min(SLOTS, len(streamed)) * max((_size(tensors_of(block)) for block in streamed), default=0)
    return small + loop + slots, small + decoder


class Offload:
    """Keeps the weights of a model on the CPU except while they are used.

    Attributes:
        blocks: of the transformer, in order.

    Args:
        model: whose weights are moved.
        name: see the module.
        device: where it computes.
        blocks_on_device: for ``"sequential"``: how many blocks visit the device for the whole loop, not one by one.
            Each takes memory and spares a copy at every scale.

    Raises:
        UsageError: if there are not so many blocks.
    """

    def __init__(self, model: Any, name: OffloadName, device: torch.device, blocks_on_device: int = 0) -> None:
        parts, self._streamed, rest = split(model, name, blocks_on_device)
        self.name, self.device, self.blocks_on_device = name, device, blocks_on_device
        self.blocks = blocks_of(model)
        pinned = device.type == "cuda"
        self._parts = {part: [Group(tensors, pinned) for tensors in groups] for part, groups in parts.items()}
        for tensor in rest:
            tensor.data = tensor.data.to(device)
        self._stream: BlockStream | None = None
        if self._streamed:
            self._stream = BlockStream([Group(tensors_of(block), pinned) for block in self._streamed], device)
            for index, block in enumerate(self._streamed):
                block.stream = (self._stream, index)
        # One generation at a time: where a weight lies is the same for all threads.
        self._lock = threading.RLock()

    @contextmanager
    def on_device(self, part: Part) -> Iterator[None]:
        """Has a part on the device for as long as the block of code runs."""
        with self._lock:
            stream = self._stream if part == "loop" else None
            try:
                for group in self._parts[part]:
                    memory = device_memory(group.nbytes, self.device)
                    group.copy_to(memory)
                    group.use(memory)
                if stream is not None:
                    stream.open()
                yield
            finally:
                for group in self._parts[part]:
                    group.rest()
                if stream is not None:
                    stream.close()

    def remove(self) -> None:
        """Leaves the weights on the CPU, to be moved like those of any model."""
        for block in self._streamed:
            block.stream = None


def blocks_of(model: Any) -> list[StreamedModule]:
    """The blocks of a model's transformer, in order."""
    return [module for module in model.transformer.modules() if isinstance(module, StreamedModule)]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """All weights of a module."""
    return [*module.parameters(), *module.buffers()]


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Where tensors begin in one piece of memory, in bytes, and at last where it ends."""
    return [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)]


def _size(tensors: Sequence[Tensor]) -> int:
    return _starts(tensors)[-1]
