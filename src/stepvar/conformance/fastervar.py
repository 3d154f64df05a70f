"""Goldens of FasterVAR on Infinity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stepvar.conformance import infinity
from stepvar.conformance.golden import Golden, Record
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Step
from stepvar.core.stack import RunBlocks
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.errors import CheckpointError
from stepvar.methods import FasterVAR
from stepvar.methods.fastervar import FasterVARState, Span


class RecordedDraws(StreamNoise):
    """The random numbers of a golden, which stores what its original drew from a source that no seed repeats.

    The places that were drawn are turned into a race that draws them in the same order.
    """

    def __init__(self, golden: Golden) -> None:
        super().__init__(golden.generator())
        self.golden = golden

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        if name is None:
            return super().exponential(scale, shape, device)
        draw = f"s{scale}_c{_span(name)}"
        places = self.golden.tensor(f"rp_idx_{draw}").long()
        order = torch.arange(places.shape[1], 0, -1.0, device=places.device).expand(places.shape)
        weights = self.golden.tensor(f"rp_prob_{draw}")
        return weights / torch.full_like(weights, 0.5).scatter(1, places, order)

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        if isinstance(turn, int):
            return super().normal(scale, turn, shape, device)
        mixing = self.golden.tensor(f"rp_q_s{scale}_c{_span(turn)}")
        return mixing * mixing.shape[-1] ** 0.5  # stored divided by the root of the rank


def _span(name: str) -> str:
    """The number of a span in the name of a draw."""
    return name.rpartition("/")[2]


@dataclass(frozen=True)
class RecordedFasterVAR(FasterVAR):
    """Notes the probabilities of the draws and the map behind each span."""

    record: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def run_projected(
        self, run: RunBlocks, tokens: TokenMap, span: Span, step: Step, state: FasterVARState
    ) -> TokenMap:
        tokens = super().run_projected(run, tokens, span, step, state)
        self.record[f"rp_out_s{step.index}_c{span.number}"] = tokens.features
        return tokens

    def draw(self, weights: Tensor, rank: int, span: Span, step: Step, state: FasterVARState) -> tuple[Tensor, Tensor]:
        self.record[f"rp_prob_s{step.index}_c{span.number}"] = weights / weights.sum(dim=1, keepdim=True)
        return super().draw(weights, rank, span, step, state)


def read_method(golden: Golden, schedule: ScaleSchedule, guidance: Sequence[float]) -> RecordedFasterVAR:
    """The method of a golden, whose settings name scales by their width.

    Raises:
        CheckpointError: if others than the last scale that is run are projected, or others than the last are skipped.
    """
    skipped, widths = golden.constant("fastervar", "skip_w"), [grid.w for grid in schedule]
    run = [width for width in widths if width not in skipped]
    projected = [width for width in run if width in golden.constant("fastervar", "project_w")]
    shares = golden.constant("fastervar", "share").get(str(run[-1]), ()) if run else ()
    if run != widths[: len(run)] or projected != run[-1:] or not shares:
        settings = golden.setting("fastervar")
        raise CheckpointError(f"{golden.path}: fastervar settings {settings} are not those of the last scales")
    alone = next((count for count, scale in enumerate(reversed(guidance)) if scale != 0), len(guidance))
    return RecordedFasterVAR(alone, len(widths) - len(run), tuple(shares), positions="first")


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    settings = infinity.read_settings(golden)
    method = read_method(golden, settings.schedule, settings.guidance)
    record, _ = infinity.record_generation(
        golden, infinity.recording_of(golden), settings, method, RecordedDraws(golden)
    )
    return record | method.record


KINDS = tuple(
    replace(
        kind,
        name="fastervar",
        run=run_generation,
        inputs=rf"{kind.inputs}|rp_(idx|q)_\w+",
        settings=kind.settings | {"fastervar"},
    )
    for kind in infinity.KINDS[:1]
)
