"""Goldens of SparVAR on Infinity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Record
from stepvar.core.plan import Step
from stepvar.core.stack import Attention, AttentionInputs, SublayerRef
from stepvar.errors import CheckpointError
from stepvar.methods import Compose, DropGuidance, Method, SkipLast, SparVAR
from stepvar.methods.sparvar import SparVARState


@dataclass(frozen=True)
class RecordingSparVAR(SparVAR):
    """Also notes which keys are chosen, what dense attention gave beyond them, and which blocks are seen.

    Attributes:
        record: what is noted.
    """

    record: Record = field(default_factory=dict)

    def run_attention(
        self, attend: Attention, inputs: AttentionInputs, ref: SublayerRef, step: Step, state: SparVARState
    ) -> Tensor:
        attended = super().run_attention(attend, inputs, ref, step, state)
        if not self._is_sparse(step):
            return attended
        if not self._chooses_keys(ref.layer, ref.depth):
            self.record[f"blocks_s{step.index}"] = self.block_map(step, attended.device)
        elif ref.layer in state.chosen:
            chosen = state.chosen[ref.layer]
            self.record[f"keys_s{step.index}_l{ref.layer}"] = chosen.places.sort(dim=-1).values
            self.record.setdefault(f"rest_l{ref.layer}", chosen.rest.flatten(3).transpose(2, 3))
        return attended


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    settings = infinity.read_settings(golden)
    sparse, others = read_method(golden, len(settings.schedule))
    record, _ = infinity.record_generation(golden, infinity.recording_of(golden), settings, Compose(sparse, *others))
    return record | sparse.record


def read_method(golden: Golden, scales: int) -> tuple[RecordingSparVAR, list[Method]]:
    """The golden's settings, and what is dropped and skipped beside.

    Raises:
        CheckpointError: if they do not cover the scales of the schedule.
    """
    settings = golden.setting("sparvar")
    if {len(settings["cs4a_window"]), len(settings["csla_window"])} != {scales}:
        raise CheckpointError(f"{golden.path}: sparvar settings {settings} need a window for each of {scales} scales")
    last = scales - settings["decision_scale"]
    sparse = RecordingSparVAR(
        sparse_scales=last,
        cs4a_layers=settings["bound_layer"] + 1,
        group=settings["group_rows"],
        key_share=settings["top_keys"],
        multiple=settings["key_multiple"],
        local_windows=settings["cs4a_window"][-last + 1 :],
        sink=settings["sink_scales"],
        windows=settings["csla_window"],
        block=settings["block"],
    )
    dropped, skipped = settings.get("drop_unconditional_last", 0), settings.get("skip_last", 0)
    others: list[Method] = [DropGuidance(last=dropped)] if dropped else []
    return sparse, [*others, SkipLast(skipped)] if skipped else others


KINDS = tuple(
    replace(kind, name="sparvar", run=run_generation, settings=kind.settings | {"sparvar"})
    for kind in infinity.KINDS[:1]
)
