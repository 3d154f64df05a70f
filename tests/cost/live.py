"""What some work really takes on the CPU, measured with nothing of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import finalize

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def live_peak(work: Callable[[], object], model: nn.Module) -> int:
    """Most bytes that tensors hold at one time during some work, beside the weights of a model."""
    weights = (*model.parameters(), *model.buffers())
    held = {weight.untyped_storage().data_ptr(): 0 for weight in weights}
    peak = 0

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            with self:  # what an operation that is made of others allocates in between counts, too
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    key = storage.data_ptr()
                    if key not in held:
                        held[key] = storage.nbytes()
                        finalize(storage, held.pop, key, None)
            peak = max(peak, sum(held.values()))
            return result

    with torch.no_grad(), Watcher():
        work()
    return peak


def counted_flops(work: Callable[[Callable[[], int]], object]) -> int:
    """Floating-point operations of some work, which is given a function that tells those so far.

    Fused attention on a CPU is not among those that PyTorch counts.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work(counter.get_total_flops)
    return counter.get_total_flops()
