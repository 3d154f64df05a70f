"""Dense generation against a method, with the same random numbers and at the same time."""

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
from stepvar.evaluation.run import interleaved
from stepvar.evaluation.statistics import Spread
from stepvar.media.video import Video
from stepvar.methods import Dense, Method, make_method
from stepvar.output import Output
from stepvar.pipeline import Pipeline


@dataclass(frozen=True)
class Comparison:
    """The same prompts and seeds, dense and with a method.

    Attributes:
        method: the method that was compared.
        dense, other: what each generated, with the report of its last run.
        dense_reports, other_reports: of each run that counts; entry i of both is from the same round.
        psnr: of the other images or frames against the dense ones, in dB over all pixels; infinite if equal.
        fitted: the speed-up that was asked for, where one was.
    """

    method: Method
    dense: Output
    other: Output
    dense_reports: tuple[Report, ...]
    other_reports: tuple[Report, ...]
    psnr: float
    fitted: Fitted | None = None

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
        """The speed-up of what it was asked of."""
        of_scales = self.fitted is not None and self.fitted.scope == "scales"
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
        """All numbers, for JSON; ``psnr`` is None where the images are equal."""
        asked = {} if self.fitted is None else self.fitted.to_dict() | {"achieved_speedup": self.achieved.to_dict()}
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
    warmup: int | None = None,
    on_run_end: Callable[[], None] | None = None,
    **settings: Any,
) -> Comparison:
    """Generates the same images or videos dense and with ``method``, several times in turn.

    The speed of a machine drifts, so each round runs both, one directly after the other and in changing
    order, and times are compared within a round only.

    Args:
        prompt: prompts, or classes for a model that takes those.
        method: a method, its name, or one fitted to a speed-up, which is then reported beside the one achieved.
        seed: as for the pipeline, but needed: both must take the same random numbers.
        runs: rounds that count.
        warmup: rounds in front of them that do not; None: as many as the engine needs to be at full speed.
        on_run_end: called after each of the ``2 * (runs + warmup)`` generations, between two of them.
        settings: further arguments of the pipeline, the same for both.

    Raises:
        UsageError: for an argument that cannot be used.
    """
    if runs < 1:
        raise UsageError(f"runs={runs}: must be at least 1")
    if warmup is None:
        warmup = pipe.engine.warmup_runs(pipe.device)
    if warmup < 0:
        raise UsageError(f"warmup={warmup}: must be 0 or more")
    fitted = method if isinstance(method, Fitted) else None
    method = _method(method)
    given: dict[str, Any] = {pipe.inputs.argument: prompt, "seed": seed, **settings}

    def run(candidate: Method, _: int) -> Output:
        output = pipe(**given, method=candidate, output_type="pil", progress=False)
        if on_run_end is not None:
            on_run_end()
        return output

    dense = Dense()
    last: dict[bool, Output] = {}
    reports: dict[bool, list[Report]] = {True: [], False: []}
    for _, candidate, output in interleaved((dense, method), range(runs), run, warmup):
        last[candidate is dense] = output
        reports[candidate is dense].append(output.report)
    return Comparison(
        method=method,
        dense=last[True],
        other=last[False],
        dense_reports=tuple(reports[True]),
        other_reports=tuple(reports[False]),
        psnr=psnr(images_of(last[True]), images_of(last[False])),
        fitted=fitted,
    )


def _method(given: Method | str | Fitted) -> Method:
    if isinstance(given, Fitted):
        return given.method
    return make_method(given) if isinstance(given, str) else given


def images_of(output: Output) -> list[Image.Image]:
    """The images of an output, or the frames of its videos, one behind the other."""
    videos: list[Video] = output.videos
    return [image for video in videos for image in video.images()] or list(output.images)


def psnr(reference: Sequence[Image.Image], images: Sequence[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images, over the pixels of all of them; inf if equal.

    Image by image, since a video would take gigabytes as numbers.
    """
    errors = [
        np.square(np.asarray(a.convert("RGB"), np.float64) - np.asarray(b.convert("RGB"), np.float64)).mean()
        for a, b in zip(reference, images, strict=True)
    ]
    error = statistics.fmean(errors)
    return 10 * math.log10(255**2 / error) if error else math.inf
