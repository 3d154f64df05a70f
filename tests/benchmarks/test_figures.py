"""The scores that the documentation draws are those of every scale."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import RecordScores
from stepvar.pipeline import Pipeline
from tests.cli.conftest import shared_model

__all__ = ["shared_model"]


def test_scores_of_every_scale_are_recorded(shared_model: Path) -> None:
    pipe, record = Pipeline.from_pretrained(shared_model, engine="eager"), RecordScores()
    image = pipe("a red circle", seed=1, method=record, output_type="pt").images
    grids = pipe.schedule().grids
    assert [tuple(part.shape for part in record.scores[place]) for place in sorted(record.scores)] == [
        ((1, grid.size), (1, grid.size)) for grid in grids
    ]
    assert (image == pipe("a red circle", seed=1, output_type="pt").images).all(), "it is not dense"
