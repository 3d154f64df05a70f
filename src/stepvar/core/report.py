"""What a generation cost: measured here, and nowhere else."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.errors import StepvarError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ScaleReport:
    """One scale.

    Attributes:
        index: place in the schedule, from 0.
        grid: (t, h, w).
        tokens: tokens of the grid.
        kept: fewest tokens that any block saw; 0 for a pass whose codes were
            given and that no later one reads.
        branches: guidance branches that ran.
        seconds: wall time, or device time on CUDA.
        clip: which clip of a video, from 0.
        scale: place among the scales of its clip, from 0; repetitions share it.
    """

    index: int
    grid: tuple[int, int, int]
    tokens: int
    kept: int
    branches: int
    seconds: float
    clip: int = 0
    scale: int = 0


@dataclass(frozen=True, repr=False)
class Report:
    """One generation.

    Attributes:
        model, method: names.
        samples: images generated.
        device, dtype: where and in what precision.
        scales: one entry per scale that ran.
        stages: seconds of what is not a scale (text, preparation, decoding).
        peak_memory: bytes; on CUDA the allocator's peak during the generation, on the CPU the peak resident
            size of the whole process so far.
        engine: how the generation ran: "eager", "graphs", or "graphs up to the decision, then eager"; after a colon,
            why not as asked.
        seeds: of the images; None when the caller gave a generator.
        schedule: name of the scale schedule.
        settings: the method's.
        chosen: why this method, where a speed-up chose it (``method="auto"``); else empty.
        quantization: how the weights of the blocks are stored; None: in ``dtype``.
        choice: what the method decided during the generation, by its name; None: nothing was left to decide.
        count: counts the floating-point operations of each pass, by its index, when they are asked for.
    """

    model: str
    method: str
    samples: int
    device: str
    dtype: str
    scales: tuple[ScaleReport, ...]
    stages: dict[str, float]
    peak_memory: int
    engine: str = "eager"
    seeds: tuple[int, ...] | None = None
    schedule: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: str = ""
    quantization: str | None = None
    choice: str | None = None
    count: Callable[[], Mapping[int, int]] | None = field(default=None, repr=False, compare=False)

    @property
    def formats(self) -> str:
        """The precision, and how weights are stored if that is another one."""
        return self.dtype if self.quantization is None else f"{self.dtype} {self.quantization}"

    @property
    def scale_seconds(self) -> float:
        """Time of the loop over scales."""
        return sum(scale.seconds for scale in self.scales)

    @property
    def seconds(self) -> float:
        """Time from prompt to pixels."""
        return self.scale_seconds + sum(self.stages.values())

    @cached_property
    def scale_flops(self) -> tuple[int, ...]:
        """Floating-point operations of each of :attr:`scales`, as PyTorch's counter counts them."""
        counted = {} if self.count is None else self.count()
        return tuple(counted.get(scale.index, 0) for scale in self.scales)

    @property
    def flops(self) -> int:
        """Floating-point operations of all scales."""
        return sum(self.scale_flops)

    @property
    def tokens(self) -> int:
        return sum(scale.tokens for scale in self.scales)

    @property
    def kept(self) -> int:
        return sum(scale.kept for scale in self.scales)

    def to_dict(self) -> dict[str, Any]:
        totals = {"seconds": self.seconds, "scale_seconds": self.scale_seconds, "flops": self.flops}
        totals |= {"tokens": self.tokens, "kept": self.kept}
        machine = {"platform": platform.platform(), "python": platform.python_version()}
        machine |= {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
        own = {name: value for name, value in vars(self).items() if name not in ("scales", "count", "scale_flops")}
        counted = zip(self.scales, self.scale_flops, strict=True)
        scales = [asdict(scale) | {"flops": flops} for scale, flops in counted]
        return own | {"scales": scales, "totals": totals, "machine": machine}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def table(self) -> Table:
        """The report as a rich table."""
        from rich.table import Table

        table = Table(title=f"{self.model}, {self.method}, {self.samples} image(s), {self.device} {self.formats}")
        for column in ("scale", "grid", "tokens", "kept", "branches", "ms", "GFLOP"):
            table.add_column(column, justify="right")
        for scale, flops in zip(self.scales, self.scale_flops, strict=True):
            t, h, w = scale.grid
            table.add_row(
                str(scale.index),
                f"{h}x{w}" if t == 1 else f"{t}x{h}x{w}",
                str(scale.tokens),
                str(scale.kept),
                str(scale.branches),
                f"{1e3 * scale.seconds:.1f}",
                f"{flops / 1e9:.2f}",
            )
        table.add_section()
        scales_ms, gflop = f"{1e3 * self.scale_seconds:.1f}", f"{self.flops / 1e9:.2f}"
        table.add_row("all", "", str(self.tokens), str(self.kept), "", scales_ms, gflop)
        for name, seconds in self.stages.items():
            table.add_row(name, "", "", "", "", f"{1e3 * seconds:.1f}", "")
        table.add_row("total", "", "", "", "", f"{1e3 * self.seconds:.1f}", "")
        decided = "" if self.choice is None else f"; decided while it ran: {self.choice}"
        table.caption = f"peak memory {self.peak_memory / 2**20:.0f} MiB{decided}"
        return table

    def __repr__(self) -> str:
        share = f"{self.kept} of {self.tokens} tokens"
        return f"Report({self.model}, {self.method}, {self.device} {self.dtype}: {self.seconds:.2f} s, {share})"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return f"<pre style='line-height:1.2'>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


@dataclass
class Recorder:
    """Collects the measurements of one generation.

    On CUDA it records events and reads them only at the end, so that nothing in the loop waits for the device.

    Attributes:
        selections: for each pass the indices (R, K) of the tokens that the method kept, in order.
        engine: how the generation ran, and why.
        totals: per pass the sum of all features behind the blocks; see :meth:`check_finite`.
        plan: what was run, all decisions made and all tokens counted; None until it is.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    scales: list[tuple[Step, Callable[[], float]]] = field(default_factory=list)
    stages: dict[str, Callable[[], float]] = field(default_factory=dict)
    selections: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    engine: str = "eager"
    totals: list[tuple[Step, Tensor | None]] = field(default_factory=list)
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times something that is not a scale."""
        stop = start_clock(self.device)
        yield
        self.stages[name] = stop()

    @contextmanager
    def scale(self, step: Step) -> Iterator[None]:
        """Times one pass."""
        stop = start_clock(self.device)
        yield
        self.scales.append((step, stop()))

    def check_finite(self, method: str) -> None:
        """Waits for the device, and refuses a generation whose features were not numbers: its image means nothing.

        Codes are chosen all the same from logits that are NaN, so nothing later would show it.

        Raises:
            StepvarError: naming the first such pass.
        """
        known = [(step, total) for step, total in self.totals if total is not None]
        if not known:
            return
        finite: list[bool] = torch.stack([total for _, total in known]).isfinite().tolist()  # waits once, not per pass
        if not all(finite):
            step = known[finite.index(False)][0]
            raise StepvarError(
                f"pass {step.index} ({step.grid}): NaN or infinity behind the blocks, so the image would mean "
                f"nothing; look for it in method {method!r} if it is your own, in the weights and the text "
                "features, or take dtype bfloat16 or float32 if this is float16"
            )

    def report(self, model: str, method: str, samples: int, dtype: torch.dtype, **more: Any) -> Report:
        """Waits for the device and reads all clocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        ran = {} if self.plan is None else {step.index: step for step in self.plan.steps}
        scales = tuple(_scale_report(ran.get(step.index, step), read()) for step, read in self.scales)
        return Report(
            model=model,
            method=method,
            samples=samples,
            device=str(self.device),
            dtype=str(dtype).removeprefix("torch."),
            scales=scales,
            stages={name: read() for name, read in self.stages.items()},
            peak_memory=peak_memory(self.device),
            engine=self.engine,
            choice=None if self.plan is None else self.plan.choice,
            **more,
        )

    def kept_maps(self) -> list[tuple[Step, Tensor]]:
        """Per pruned scale a map (rows, t, h, w) of how often a token was kept, in [0, 1], on the CPU."""
        maps = []
        for step, _ in self.scales:
            selections = self.selections.get(step.index, ())
            if selections:
                counts = torch.zeros(len(selections[0]), step.grid.size)
                for selection in selections:
                    kept = selection.cpu()
                    counts.scatter_add_(1, kept, torch.ones(kept.shape))
                maps.append((step, (counts / len(selections)).view(-1, *step.grid.shape)))
        return maps


def start_clock(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Starts a clock; calling the result stops it and gives a function that reads the seconds.

    On CUDA reading waits for the device, stopping does not.
    """
    if device.type == "cuda":
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()

        def read_event() -> float:
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        def stop_event() -> Callable[[], float]:
            end.record()
            return read_event

        return stop_event
    start = time.perf_counter()

    def stop() -> Callable[[], float]:
        if device.type == "mps":
            torch.mps.synchronize()
        seconds = time.perf_counter() - start
        return lambda: seconds

    return stop


def _scale_report(step: Step, seconds: float) -> ScaleReport:
    return ScaleReport(
        index=step.index,
        grid=step.grid.shape,
        tokens=step.grid.size,
        kept=step.fewest_tokens,
        branches=step.branches if step.computed else 0,
        seconds=seconds,
        clip=step.clip,
        scale=step.scale,
    )


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the allocator on CUDA, of the process's resident size elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
