"""Refusing what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.checkpoints.loading import meta_model
from stepvar.cost.dry_run import DryRun
from stepvar.cost.memory import EASILY, check_fits, fits_easily, memory_of
from stepvar.errors import UsageError
from stepvar.methods import Method
from stepvar.models.infinity import Infinity
from stepvar.pipeline import Pipeline
from tests.helpers import WIDE, make_settings

GIB = 2**30
LARGE = DryRun({}, 0, 0, weights=9 * GIB, cache=2 * GIB, scales=3 * GIB, decoding=GIB)


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        (LARGE, r"memory: needs about 14.0 GiB \(9.0 GiB for weights\), and the GPU has 8.0 GiB; use dtype bfloat16"),
        (replace(LARGE, cache=10 * GIB), r"22.0 GiB \(10.0 GiB for cache\).*generate fewer at once"),
        (replace(LARGE, scales=10 * GIB), r"21.0 GiB \(10.0 GiB for scales\).*a smaller resolution"),
        (replace(LARGE, decoding=10 * GIB), r"21.0 GiB \(10.0 GiB for decoding\).*decode by tiles"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(taken: DryRun, message: str) -> None:
    check_fits(taken, taken.peak, "the GPU")
    with pytest.raises(UsageError, match=message):
        check_fits(taken, 8 * GIB, "the GPU")


def test_a_pipeline_refuses_before_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(meta_model("FoundationVision/Infinity", "2b"), None)  # without weights: it cannot be run
    monkeypatch.setattr("stepvar.pipeline.memory_of", lambda device: 4 * GIB)
    with pytest.raises(UsageError, match=r"memory: needs about .* GiB for cache\), and device meta has 4.0 GiB"):
        pipe(prompt_embeds=torch.zeros(1, 4, pipe.model.config.text_channels), seed=0)


def test_small_models_fit_without_a_dry_run(tiny_model: Infinity) -> None:
    plan = Method().plan(make_settings(WIDE), tiny_model.info, 1)
    weights = sum(tensor.nbytes for tensor in (*tiny_model.parameters(), *tiny_model.buffers()))
    assert fits_easily(tiny_model, plan, 2 * EASILY * weights) and not fits_easily(tiny_model, plan, EASILY * weights)
    assert (memory_of(torch.device("cpu")) or 0) > 2**28


@pytest.mark.parametrize(
    ("repository", "variant", "samples"),
    [
        ("FoundationVision/Infinity", "125m", 1),
        ("FoundationVision/var", "d16", 8),
        ("mit-han-lab/hart-0.7b-1024px", "0.7b", 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fits_easily_fits(repository: str, variant: str, samples: int, dtype: torch.dtype) -> None:
    pipe = Pipeline(meta_model(repository, variant), None).to(dtype=dtype)
    plan = Method().plan(pipe.settings(guidance_scale=1.0), pipe.model.info, samples)
    assert not fits_easily(pipe.model, plan, 3 * pipe.dry_run(plan, Method()).peak)
