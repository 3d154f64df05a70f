"""Goldens of ScaleKV on Infinity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Record
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import Attention, AttentionInputs, SublayerRef
from stepvar.errors import CheckpointError
from stepvar.methods import Capacities, MethodState, ScaleKV


@dataclass(frozen=True)
class RecordingScaleKV(ScaleKV):
    """Also notes which keys stay; behind the last pass too, where the original chooses although nothing follows.

    Attributes:
        record: what is noted.
    """

    record: Record = field(default_factory=dict)

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        if not step.is_read and step.dropped[ref.layer]:
            self.select_cached(inputs, inputs.keys.shape[2] - step.dropped[ref.layer], ref, step, state)
        return attend(inputs)

    def select_cached(
        self, inputs: AttentionInputs, count: int, ref: SublayerRef, step: Step, state: MethodState
    ) -> Tensor:
        kept = super().select_cached(inputs, count, ref, step, state)
        self.record[f"kept_cache_s{step.index}_l{ref.layer}"] = kept
        return kept


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    settings = infinity.read_settings(golden)
    method = read_method(golden, len(settings.schedule))
    record, recorder = infinity.record_generation(golden, infinity.recording_of(golden), settings, method)
    assert recorder.plan is not None
    return record | method.record | {"cache_len": cache_lengths(recorder.plan)}


def read_method(golden: Golden, scales: int) -> RecordingScaleKV:
    """The golden's settings, with its capacities by the number of the scale, from 1.

    Raises:
        CheckpointError: if they are not those of neighbouring scales up to the last.
    """
    settings = golden.setting("scalekv")
    table = {int(number): tuple(row) for number, row in settings["capacity"].items()}
    if sorted(table) != list(range(scales - len(table) + 1, scales + 1)) or settings["pooling"] != "maxpool":
        raise CheckpointError(
            f"{golden.path}: scalekv settings {settings} are not those of the last scales, max-pooled"
        )
    return RecordingScaleKV(
        capacities=Capacities(tuple(table[number] for number in sorted(table)), scales),
        base=settings["base"],
        window=settings["window"],
        kernel=settings["kernel"],
    )


def cache_lengths(plan: Plan) -> Tensor:
    """Keys of each layer at each pass (K, depth, 2): with its own, and after some of them have left."""
    rows = [
        [(keys, keys - gone) for keys, gone in zip(plan.attended(step), step.dropped, strict=True)]
        for step in plan.computed
    ]
    return torch.tensor(rows, dtype=torch.int32)


KINDS = tuple(
    replace(kind, name="scalekv", run=run_generation, settings=kind.settings | {"scalekv"})
    for kind in infinity.KINDS[:1]
)
