"""Dense generation against a method, from the same draws and at the same time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from stepvar.core.report import Report
from stepvar.cost.speedup import Fitted
from stepvar.errors import UsageError
from stepvar.media.video import Video
from stepvar.methods import Dense, Method, make_method
from stepvar.output import Output
from stepvar.pipeline import Pipeline


@dataclass(frozen=True)
class Spread:
    """Median and range of a few measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.lowest, "max": self.highest}


@dataclass(frozen=True)
class Comparison:
    """The same prompts and seeds, drawn dense and with a method.

    Attributes:
        method: the method that was compared.
        dense, other: what each drew, with the report of its last run.
        dense_reports, other_reports: of each run that counts; entry i of both is from the same round.
        psnr: of the other pictures or frames against the dense ones, in dB over all pixels; infinite if equal.
        budget: the speed-up that was asked for, where one was.
    """

    method: Method
    dense: Output
    other: Output
    dense_reports: tuple[Report, ...]
    other_reports: tuple[Report, ...]
    psnr: float
    budget: Fitted | None = None

    @property
    def runs(self) -> int:
        return len(self.dense_reports)

    @property
    def dense_seconds(self) -> tuple[float, ...]:
        """Time from prompt to pixels of each dense run."""
        return tuple(report.seconds for report in self.dense_reports)

    @property
    def other_seconds(self) -> tuple[float, ...]:
        """Time from prompt to pixels of each run with the method."""
        return tuple(report.seconds for report in self.other_reports)

    @property
    def speedup(self) -> Spread:
        """Dense time from prompt to pixels divided by the method's of the same round; above 1 is faster."""
        return Spread.of([d / o for d, o in zip(self.dense_seconds, self.other_seconds, strict=True)])

    @property
    def scales_speedup(self) -> Spread:
        """The same for the loop over scales alone, without text encoder and decoder, which no method changes."""
        pairs = zip(self.dense_reports, self.other_reports, strict=True)
        return Spread.of([dense.scale_seconds / other.scale_seconds for dense, other in pairs])

    @property
    def achieved(self) -> Spread:
        """The speed-up of what the budget asked it of."""
        of_scales = self.budget is not None and self.budget.scope == "scales"
        return self.scales_speedup if of_scales else self.speedup

    @property
    def token_share(self) -> float:
        """Tokens that the method computed, as a share of the dense ones."""
        return self.other.report.kept / self.dense.report.kept

    @property
    def flop_share(self) -> float:
        """Floating-point operations of the method, as a share of the dense ones."""
        return self.other.report.flops / self.dense.report.flops

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; ``psnr`` is None where the pictures are equal."""
        asked = {} if self.budget is None else self.budget.to_dict() | {"achieved_speedup": self.achieved.to_dict()}
        return {
            "method": {"name": str(self.method), "settings": repr(self.method)},
            "runs": self.runs,
            **({"budget": asked} if asked else {}),
            "speedup": self.speedup.to_dict(),
            "scales_speedup": self.scales_speedup.to_dict(),
            "token_share": self.token_share,
            "flop_share": self.flop_share,
            "psnr": self.psnr if np.isfinite(self.psnr) else None,
            "dense_seconds": list(self.dense_seconds),
            "method_seconds": list(self.other_seconds),
            "dense_report": self.dense.report.to_dict(),
            "method_report": self.other.report.to_dict(),
        }


def compare(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    method: Method | str | Fitted,
    seed: int | Sequence[int],
    runs: int = 3,
    warmup: int = 1,
    on_run_end: Callable[[], None] | None = None,
    **settings: Any,
) -> Comparison:
    """Draws the same pictures or videos dense and with ``method``, several times in turn.

    The speed of a machine drifts, so each round runs both, one directly after the other and in changing
    order, and times are compared within a round only.

    Args:
        prompt: what to draw: prompts, or classes for a model that draws those.
        method: a method, its name, or a budget, whose speed-up is then reported beside the one achieved.
        seed: as for the pipeline, but needed: both must draw the same.
        runs: rounds that count.
        warmup: rounds in front of them that do not.
        on_run_end: called after each of the ``2 * (runs + warmup)`` generations, between two of them.
        settings: further arguments of the pipeline, the same for both.

    Raises:
        UsageError: for an argument that cannot be used.
    """
    if runs < 1:
        raise UsageError(f"runs={runs}: must be at least 1")
    if warmup < 0:
        raise UsageError(f"warmup={warmup}: must be 0 or more")
    budget = method if isinstance(method, Fitted) else None
    method = _method(method)
    subject: dict[str, Any] = {pipe.conditioner.argument: prompt}
    candidates: dict[str, Method] = {"dense": Dense(), "other": method}
    reports: dict[str, list[Report]] = {name: [] for name in candidates}
    outputs: dict[str, Output] = {}
    for number in range(warmup + runs):
        order = list(candidates) if number % 2 == 0 else list(reversed(candidates))
        for name in order:
            outputs[name] = pipe(
                **subject, method=candidates[name], seed=seed, output_type="pil", progress=False, **settings
            )
            if number >= warmup:
                reports[name].append(outputs[name].report)
            if on_run_end is not None:
                on_run_end()
    return Comparison(
        method=method,
        dense=outputs["dense"],
        other=outputs["other"],
        dense_reports=tuple(reports["dense"]),
        other_reports=tuple(reports["other"]),
        psnr=psnr(pictures_of(outputs["dense"]), pictures_of(outputs["other"])),
        budget=budget,
    )


def _method(given: Method | str | Fitted) -> Method:
    if isinstance(given, Fitted):
        return given.method
    return make_method(given) if isinstance(given, str) else given


def pictures_of(output: Output) -> list[Image.Image]:
    """The pictures of an output, or the frames of its videos, one behind the other."""
    videos: list[Video] = output.videos
    return [image for video in videos for image in video.images()] or list(output.images)


def psnr(reference: Sequence[Image.Image], pictures: Sequence[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures, over the pixels of all of them; inf if equal.

    Picture by picture, since a video would take gigabytes as numbers.
    """
    errors = [
        np.square(np.asarray(a.convert("RGB"), np.float64) - np.asarray(b.convert("RGB"), np.float64)).mean()
        for a, b in zip(reference, pictures, strict=True)
    ]
    error = statistics.fmean(errors)
    return 10 * math.log10(255**2 / error) if error else math.inf
