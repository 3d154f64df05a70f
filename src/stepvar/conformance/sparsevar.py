"""Goldens of SparseVAR on Infinity, as its public reproduction computes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Record
from stepvar.core.plan import Step
from stepvar.core.tokens import ScaleSchedule
from stepvar.methods import SparseVAR
from stepvar.methods.sparsevar import Exclusion, SparseVARState, share_above


@dataclass(frozen=True)
class RecordingSparseVAR(SparseVAR):
    """Also notes how it selects."""

    record: Record = field(default_factory=dict, compare=False)

    def exclude(self, step: Step, state: SparseVARState) -> Exclusion:
        source, error, found = self.source(step), state.error, super().exclude(step, state)
        assert error is not None
        share = share_above(error.values, self.threshold or 0.0)
        self.record.update({f"error_{source}": error.values, f"share_{source}": share})
        excluded = found.excluded.nonzero()[:, 1].unsqueeze(0)
        noted = {
            "kept": found.kept,
            "kept_order": found.order,
            "excluded": excluded,
            "recoverable": found.recoverable.gather(1, excluded),
            "anchor": found.anchor.gather(1, excluded),
            "similarity": found.similarity,
            "zeroed": found.excluded & ~found.recoverable,
        }
        self.record.update({f"{name}_s{step.index}": values for name, values in noted.items()})
        return found


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes, and notes what was excluded and why."""
    record = Record()
    computed = infinity.run_generation(golden, lambda schedule: read_method(golden, schedule, record))
    return computed | record


def read_method(golden: Golden, schedule: ScaleSchedule, record: Record) -> SparseVAR:
    """The preset ``reproduction`` with the golden's constants."""
    constant = partial(golden.constant, "sparsevar")
    per_chunk = golden.setting("depth") // golden.setting("block_chunks")
    first = constant("measure_chunk") * per_chunk
    own = {
        "last": len(schedule) - constant("first_pruned_scale"),
        "blocks": (first, first + per_chunk - 1),
        "threshold": constant("threshold"),
        "anchor_step": constant("anchor_step"),
        "similarity": constant("similarity"),
    }
    return RecordingSparseVAR(**{**SparseVAR.presets["reproduction"], **own}, record=record)


KINDS = (
    replace(
        infinity.GENERATION,
        name="sparsevar",
        run=run_generation,
        settings=infinity.GENERATION.settings | {"sparsevar"},
    ),
)
