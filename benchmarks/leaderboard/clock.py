"""How long a method takes beside dense, by CUDA graphs where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from stepvar.engine import Engine
from stepvar.errors import UsageError
from stepvar.methods import Dense, Method
from stepvar.pipeline import Pipeline

ROUNDS, WARM_UP = 3, 2
"""Timed batches, and those in front of them: eager, then captured."""


class Clock:
    """How many times as fast as dense a method's loop over scales is, measured once for each method."""

    def __init__(self, pipe: Pipeline, prompts: Sequence[str]) -> None:
        self.pipe, self.prompts = pipe, list(prompts)
        self.found: dict[str, dict[str, float]] = {}
        self.dense, self.own = Engine("auto"), Engine("auto")
        for _ in range(WARM_UP):
            self._run(self.dense, Dense())

    def __call__(self, method: Method) -> float:
        return self.times(method)["median"]

    def times(self, method: Method) -> dict[str, float]:
        """The least, the median and the most of a few rounds.

        Raises:
            UsageError: for a method that decides by the image, whose time is not one number.
        """
        if not method.static:
            raise UsageError(f"method {str(method)!r}: decides by the image; it has no time of its own")
        key = repr(method)
        if key not in self.found:
            self.own.clear()
            for _ in range(WARM_UP):
                self._run(self.own, method)
            ratios = [self._run(self.dense, Dense()) / self._run(self.own, method) for _ in range(ROUNDS)]
            self.found[key] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
        return self.found[key]

    def _run(self, engine: Engine, method: Method) -> float:
        self.pipe.engine = engine
        return self.pipe(self.prompts, method=method, seed=1, output_type="latent", progress=False).report.scale_seconds
