"""Which method for a model and a speed-up: ``--method auto``, by the comparison of methods that was made of the model.

The tables are the file ``auto.json`` of this folder, which ``python -m benchmarks.leaderboard --figures --auto MODEL``
writes: for each model and each cost the methods that were compared at it, the one whose images were nearest to dense
ones first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log
from typing import Any

from stepvar.methods import Method, make_method


@dataclass(frozen=True)
class Choice:
    """A method that may serve a speed-up.

    Attributes:
        method: with the settings that the speed-up does not decide.
        reason: why it was chosen, in words.
        cost: at which it was compared, as a speed-up of the loop over scales, counted in operations.
    """

    method: Method
    reason: str
    cost: float


def choices(model: str, speedup: float) -> list[Choice]:
    """The methods for a speed-up, the best first; the next one is for where a plan or a device rules one out.

    The table of the model is read at the nearest speed-up that was compared. A model without one takes that of another:
    a guess, and said to be one.

    Args:
        model: its name, as of :attr:`Pipeline.name <stepvar.pipeline.Pipeline>`.
        speedup: how many times as fast as dense the loop over scales is to be.
    """
    known = tables()
    source = model if model in known else next(iter(known))
    cost = min(known[source], key=lambda cost: abs(log(float(cost) / max(speedup, 1.0))))
    rows = known[source][cost]
    own = f"on {model}" if source == model else f"on {source}, since no comparison was made on {model}"
    found = []
    for place, row in enumerate(rows):
        rank = "nearest to dense" if place == 0 else f"number {place + 1}"
        reason = (
            f"{rank} of {len(rows)} methods compared, baselines aside, at {cost} times {own} ({row['psnr']:.1f} dB)"
        )
        found.append(Choice(make_method(row["method"], **row["settings"]), reason, float(cost)))
    return found


@cache
def tables() -> Mapping[str, Mapping[str, list[dict[str, Any]]]]:
    """By model and cost, as a speed-up counted in operations: the methods compared, the best first."""
    text = (files("stepvar.cost") / "auto.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(text)["models"]
    return found
