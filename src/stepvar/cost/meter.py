"""Counts the floating-point operations of PyTorch code and watches how many bytes its tensors hold.

The operations are those of :mod:`torch.utils.flop_counter`. Bytes are those of the storages that are alive, views
counted once: what PyTorch's allocator is asked for, without what it and the libraries of a device keep beside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

ATEN = torch.ops.aten

Effect = Literal["composite", "new", "in-place", "out", "other"]


@dataclass(eq=False)
class Storage:
    """A storage that tensors were seen to use.

    Attributes:
        nbytes: its size.
        times: how many like it there are (see :meth:`Meter.repeat`); 0 once it is gone.
        reference: calls back when it is gone.
    """

    nbytes: int
    times: int = 1
    reference: object = None


@dataclass(frozen=True)
class Spent:
    """What a part of some work took.

    Attributes:
        flops: floating-point operations.
        above: most bytes that were held at a time, beyond those held when it began.
        kept: the storages that it made and that are still alive.
    """

    flops: int
    above: int
    kept: tuple[Storage, ...]


@dataclass
class Part:
    """A part of some work, of which the meter says afterwards what it spent.

    Attributes:
        leaving: to be told inside: the tensors that take the place of those that the part was given, and that are
            therefore not kept beside them if it is repeated.
    """

    leaving: tuple[Tensor, ...] = ()
    spent: Spent = Spent(0, 0, ())


class Meter(TorchDispatchMode):
    """Meters all operations on a device that are started inside ``with meter:``.

    On the ``meta`` device, where tensors have shapes and no data, an operation on shapes that were seen before is not
    run again: working out the shape of a result takes PyTorch longer than all the rest here.

    Attributes:
        flops: floating-point operations so far.
        held: bytes that are held now.
        peak: most bytes held at a time since the last :meth:`restart_peak`.
    """

    def __init__(self, device: torch.device, results: dict[Any, Any] | None = None) -> None:
        """
        Args:
            device: whose tensors are watched.
            results: shapes of the results of operations on the meta device; may be shared by several meters.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.held = self.peak = 0
        self._device = device.type
        self._results = {} if results is None else results
        self._alive: dict[int, Storage] = {}
        self._made: list[Storage] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import the compiler at the first operation, which takes a second; nothing is compiled here.
        return False

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were made outside, such as weights."""
        for tensor in tensors:
            self._see(tensor)

    def restart_peak(self) -> None:
        """Takes what is held now as the peak so far."""
        self.peak = self.held

    @contextmanager
    def part(self) -> Iterator[Part]:
        """Meters a part of the work by itself."""
        part = Part()
        flops, held, peak, made = self.flops, self.held, self.peak, self._made
        self.peak, self._made = held, []
        yield part
        leaving = [self._alive.get(tensor.untyped_storage()._cdata) for tensor in part.leaving]
        kept = [storage for storage in self._made if storage.times]
        own = tuple(storage for storage in kept if storage not in leaving)
        part.spent, part.leaving = Spent(self.flops - flops, self.peak - held, own), ()
        self.peak, self._made = max(self.peak, peak), made + kept

    def repeat(self, spent: Spent) -> None:
        """Counts a part once more, without running it."""
        self.flops += spent.flops
        self.peak = max(self.peak, self.held + spent.above)
        for storage in spent.kept:
            if storage.times:
                storage.times += 1
                self.held += storage.nbytes
        self.peak = max(self.peak, self.held)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts no operations and no new peak."""
        flops, peak = self.flops, self.peak
        yield
        self.flops, self.peak = flops, max(peak, self.held)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATEN.scaled_dot_product_attention.default and args[0].device.type == "meta":
            return self._fused_attention(*args[:3])
        effect = effect_of(func)
        if effect == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        if self._device != "meta" or effect == "other":
            return self._run(func, args, kwargs)[0]
        key = (func, describe(args), describe(kwargs))
        known = self._results.get(key)
        if known is None:
            result, flops = self._run(func, args, kwargs)
            self._results[key] = (layouts(result), flops)
            return result
        shapes, flops = known
        if shapes is None:  # something else than tensors on the meta device
            return self._run(func, args, kwargs)[0]
        self.flops += flops
        if effect == "in-place":
            return args[0]
        if effect == "out":
            return kwargs["out"]
        made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in shapes]
        self.watch(made)
        return made[0] if len(func._schema.returns) == 1 else tuple(made)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        result = func(*args, **kwargs)
        count = counting(func)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        self.flops += flops
        self.watch(tensors_in(result))
        return result, flops

    def _fused_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the fused kernels of devices allocate: the result, in their order, and no matrix of all pairs."""
        rows, heads, count, _ = q.shape
        self.flops += int(sdpa_flop_count(q.shape, k.shape, v.shape))
        result = torch.empty(rows, count, heads, v.shape[-1], dtype=q.dtype, device=q.device).transpose(1, 2)
        self._see(result)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self._device:
            return
        used = tensor.untyped_storage()
        address = used._cdata
        if address not in self._alive:
            self._alive[address] = storage = Storage(used.nbytes())
            storage.reference = weakref.ref(used, lambda _: self._gone(address))
            self._made.append(storage)
            self.held += storage.nbytes
            self.peak = max(self.peak, self.held)

    def _gone(self, address: int) -> None:
        storage = self._alive.pop(address)
        self.held -= storage.nbytes * storage.times
        storage.times = 0


@cache
def effect_of(func: Any) -> Effect:
    """What an operation does to its arguments, from its schema.

    ``"composite"`` ones are made of others; ``"new"`` ones only make new tensors; ``"other"`` ones make views.
    """
    if counting(func) is None and func._can_decompose():
        return "composite"
    schema = func._schema
    written = [argument.alias_info for argument in schema.arguments if argument.alias_info is not None]
    if not written and not any(result.alias_info for result in schema.returns):
        lists = any("List" in str(result.type) for result in schema.returns)
        return "other" if lists else "new"
    if len(written) == len(schema.returns) == 1 and written[0].is_write:
        if schema.arguments[0].alias_info is not None:
            return "in-place"
        if schema.arguments[-1].name == "out":
            return "out"
    return "other"


@cache
def counting(func: Any) -> Callable[..., int] | None:
    """PyTorch's function that counts the operations of ``func``; None for those that it does not count."""
    packet = func._overloadpacket
    if packet is ATEN._scaled_dot_product_flash_attention_for_cpu:
        packet = ATEN._scaled_dot_product_flash_attention  # counted alike, and forgotten in PyTorch's table
    found: Callable[..., int] | None = flop_registry.get(packet)
    return found


def describe(value: Any) -> Any:
    """Something hashable that is equal for arguments of which an operation makes results of equal shape.

    Host values stand for themselves, with their type: 1 and 1.0 give results of different types.
    """
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, (list, tuple)):
        return tuple(map(describe, value))
    if isinstance(value, dict):
        return tuple((name, describe(one)) for name, one in value.items())
    return (type(value), value)


def layouts(result: Any) -> list[tuple[Any, ...]] | None:
    """Sizes, strides and types of results on the meta device; None for anything else."""
    found = [result] if isinstance(result, Tensor) else result
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(one, Tensor) and one.device.type == "meta" for one in found
    ):
        return None
    return [(one.shape, one.stride(), one.dtype) for one in found]


def tensors_in(result: Any) -> Iterator[Tensor]:
    """The tensors among what an operation returned."""
    for one in result if isinstance(result, (list, tuple)) else (result,):
        if isinstance(one, Tensor):
            yield one
