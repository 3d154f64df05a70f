"""What a process has set for all of its PyTorch code, kept away from computations whose formats are stated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from stepvar.utils.device import full_precision

ACCELERATORS = ("cuda", "mps")


class _ProcessFormats:
    """The default type of new tensors, and whether float32 products may round: settings that all threads share.

    The first computation that begins sets them, the last one that ends gives them back, so that those of several
    threads do not take each other's values for those of the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._restore = ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if self._running == 0:
                self._begin()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._restore.close()

    def _begin(self) -> None:
        default = torch.get_default_dtype()
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
            self._restore.callback(torch.set_default_dtype, default)
        self._restore.enter_context(full_precision())


_process = _ProcessFormats()


@contextmanager
def stated_formats() -> Iterator[None]:
    """Within it the process's settings change no number: around everything that computes what users get.

    New tensors are float32 on the CPU unless the code says otherwise, whatever ``torch.set_default_dtype``,
    ``torch.set_default_device`` or a ``torch.device`` block say; nothing runs under autocast; float32 is float32
    (``torch.set_float32_matmul_precision``, TensorFloat-32 in convolutions). All is as before afterwards. It may be
    nested, and used by several threads; as a decorator, too.

    What stays as the process has it: the number of threads, deterministic algorithms, and the choice of kernels.
    """
    with ExitStack() as stack:
        stack.enter_context(_process.held())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", *ACCELERATORS):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
