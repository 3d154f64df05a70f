"""How fast a device is at what scales are made of: a short measurement."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.report import start_clock
from stepvar.models.work import Work

ROWS = (1, 16, 64, 256, 1024, 4096)
NUMBER = 4
"""Bytes of a number of the residual stream, which is float32 unless a model is told otherwise."""


@dataclass(frozen=True)
class DeviceRates:
    """What a device does in a second.

    Attributes:
        products: operations per second of products with weights, by the number of rows: few rows are slower.
        attention: operations per second of attention.
        bandwidth: bytes per second of operations that compute next to nothing.
        launch: seconds that starting one operation takes.
        queued: whether operations are started ahead of the device's work, so that the two overlap.
    """

    products: tuple[tuple[int, float], ...]
    attention: float
    bandwidth: float
    launch: float
    queued: bool = False

    def seconds(self, works: Iterable[Work], passes: float = 0.0) -> float:
        """Time of some work, one part after the other.

        Args:
            passes: numbers moved beside it.
        """
        device, started = passes * NUMBER / self.bandwidth, 0
        for work in works:
            if work.products:
                device += work.products / self.product_rate(work.rows)
            device += work.attention / self.attention + work.moved * NUMBER / self.bandwidth
            started += work.launches
        return max(device, started * self.launch) if self.queued else device + started * self.launch

    def product_rate(self, rows: int) -> float:
        """Operations per second of a product with ``rows`` rows, between those measured by their logarithms."""
        for (low, slow), (high, fast) in pairwise(self.products):
            if low <= rows <= high:
                place = log(rows / low) / log(high / low)
                return exp((1 - place) * log(slow) + place * log(fast))
        return self.products[0][1] if rows < self.products[0][0] else self.products[-1][1]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeviceRates:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: if it is something else.
        """
        products = tuple((int(rows), float(rate)) for rows, rate in values["products"])
        attention, bandwidth, launch = (float(values[name]) for name in ("attention", "bandwidth", "launch"))
        if not products or not min(attention, bandwidth, launch, *(rate for _, rate in products)) > 0:
            raise ValueError("rates must be above 0")
        return cls(products, attention, bandwidth, launch, bool(values["queued"]))


def device_key(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What the rates of a device depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": f"{device.type}: {name}",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
        "dtype": str(dtype).removeprefix("torch."),
    }


def processor_name() -> str:
    """The model of the CPU where the system says it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


MEASUREMENTS = len(ROWS) + 3
"""Steps of :func:`measure_rates`."""


@torch.inference_mode()
def measure_rates(device: torch.device, dtype: torch.dtype, advance: Callable[[], None]) -> DeviceRates:
    """A few seconds of products, attention, copies and empty operations.

    Args:
        dtype: of products and attention.
        advance: called behind each of the :data:`MEASUREMENTS`.
    """
    width, large = (2048, 1 << 24) if device.type == "cuda" else (1024, 1 << 21)

    def measured(work: Callable[[], object], repeats: int = 1) -> float:
        seconds = best_seconds(device, work, repeats)
        advance()
        return seconds

    weight = torch.randn(width, width, device=device, dtype=dtype)
    inputs = [torch.randn(rows, width, device=device, dtype=dtype) for rows in ROWS]
    times = [measured(lambda x=x: F.linear(x, weight)) for x in inputs]  # type: ignore[misc]
    query, key = (torch.randn(1, 8, tokens, 64, device=device, dtype=dtype) for tokens in (512, 2048))
    attention = measured(lambda: F.scaled_dot_product_attention(query, key, key))
    block: Tensor = torch.zeros(large, device=device)
    moving = measured(lambda: block.mul(2))
    small = torch.zeros(16, device=device)
    launch = measured(lambda: [small.mul(2) for _ in range(200)], repeats=1) / 200
    return DeviceRates(
        products=rates_by_rows(ROWS, times, 2 * width * width),
        attention=4 * 8 * 512 * 2048 * 64 / attention,
        bandwidth=2 * NUMBER * large / moving,
        launch=launch,
        queued=device.type == "cuda",
    )


def rates_by_rows(rows: Sequence[int], times: Sequence[float], per_row: int) -> tuple[tuple[int, float], ...]:
    """Operations per second for each number of rows; more rows are never taken to need less time."""
    rates, longest = [], 0.0
    for count, seconds in zip(rows, times, strict=True):
        longest = max(longest, seconds)
        rates.append((count, count * per_row / longest))
    return tuple(rates)


def best_seconds(device: torch.device, work: Callable[[], object], repeats: int, patience: float = 0.25) -> float:
    """The shortest time of some work: others on the machine can only make it longer.

    Args:
        repeats: runs per measurement, to make short work longer than the clock's grain.
        patience: seconds after which no further measurement is begun; there are three at least.
    """
    work()
    times: list[float] = []
    begun = time.monotonic()
    while len(times) < 3 or (time.monotonic() - begun < patience and len(times) < 50):
        stop = start_clock(device)
        for _ in range(repeats):
            work()
        times.append(stop()() / repeats)
    return min(times)
