"""Refusing what does not fit."""

from __future__ import annotations

import re
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
LARGE = DryRun({}, 0, 0, weights=9 * GIB, decoder_weights=9 * GIB, cache=2 * GIB, scales=3 * GIB, decoding=GIB)


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        (LARGE, r"memory: needs about 14.0 GiB \(9.0 GiB for weights\), and the GPU has 8.0 GiB; use.*--offload"),
        (replace(LARGE, cache=10 * GIB), r"22.0 GiB \(10.0 GiB for cache\).*cache_dtype int8"),
        (replace(LARGE, scales=10 * GIB), r"21.0 GiB \(10.0 GiB for scales\).*a smaller resolution"),
        (replace(LARGE, decoding=10 * GIB), r"19.0 GiB \(10.0 GiB for decoding\).*decode by tiles"),
        (replace(LARGE, decoder_weights=GIB, decoding=14 * GIB), r"15.0 GiB \(14.0 GiB for decoding\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(taken: DryRun, message: str) -> None:
    check_fits(taken, taken.peak, "the GPU")
    with pytest.raises(UsageError, match=message):
        check_fits(taken, 8 * GIB, "the GPU")


def test_a_pipeline_refuses_before_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(meta_model("FoundationVision/Infinity", "2b"), None)  # without weights: it cannot be run
    monkeypatch.setattr("stepvar.pipeline.memory.memory_of", lambda device: 4 * GIB)
    with pytest.raises(UsageError, match=r"memory: needs about .* GiB for cache\), and device meta has 4.0 GiB"):
        pipe(prompt_embeds=torch.zeros(1, 4, pipe.model.config.text_channels), seed=0)


class Agreeing:
    """Another process that asks for the same."""

    def agree(self, seeds: tuple[int, ...], asked: object) -> tuple[int, ...]:
        return seeds


def test_of_two_processes_each_holds_the_keys_and_values_of_one_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepvar.pipeline.memory.memory_of", lambda device: GIB)
    said = []
    for processes in (None, Agreeing()):
        pipe = Pipeline(meta_model("FoundationVision/Infinity", "2b"), None, processes=processes)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="GiB for cache") as caught:
            pipe(prompt_embeds=torch.zeros(4, 4, pipe.model.config.text_channels), seed=0)
        said += re.findall(r"([\d.]+) GiB for cache", str(caught.value))
    one, each = map(float, said)
    assert one == pytest.approx(2 * each, abs=0.15)  # both rounded to a tenth


def test_decoding_does_not_run_beside_the_cache_and_offloading_lowers_what_is_planned() -> None:
    pipe = Pipeline(meta_model("FoundationVision/Infinity", "8b"), None).to(dtype=torch.bfloat16)
    plan = Method().plan(pipe.settings(), pipe.model.info, 1)
    whole = pipe.dry_run(plan, Method())
    assert whole.decoding > whole.scales and whole.peak == whole.weights + whole.cache + whole.scales
    pipe.model.set_cache_dtype("int8")
    halved = pipe.dry_run(plan, Method())
    head_dim = pipe.model.config.head_dim
    assert halved.cache == whole.cache * (head_dim + 4) // (2 * head_dim)  # int8, and a scale of four bytes per head
    assert halved.scales < 1.2 * whole.scales and halved.flops == whole.flops
    peaks = [whole.peak, halved.peak]
    for count in (39, 20, 0):
        pipe.enable_sequential_cpu_offload("meta", count)
        planned = pipe.dry_run(plan, Method())
        assert (planned.scales, planned.decoding) == (halved.scales, halved.decoding)
        peaks.append(planned.peak)
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < 9 * GIB
    pipe.enable_model_cpu_offload("meta")
    in_turn = pipe.dry_run(plan, Method())
    assert in_turn.peak < halved.peak and in_turn.decoder_weights < GIB < in_turn.weights


def test_slices_take_the_memory_of_one_image() -> None:
    pipe = Pipeline(meta_model("FoundationVision/Infinity", "125m"), None)
    plans = [Method().plan(pipe.settings(), pipe.model.info, samples) for samples in (1, 4)]
    one, four = (pipe.dry_run(plan, Method()).decoding for plan in plans)
    sliced = pipe.enable_vae_slicing().dry_run(plans[1], Method()).decoding
    images = 2 * 4 * 3 * 1024 * 1024 * 4  # all of them, and all of them joined
    assert four > 3.9 * one and sliced <= one + images


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
        ("yresearch/Switti", "2.5b-1024", 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fits_easily_fits(repository: str, variant: str, samples: int, dtype: torch.dtype) -> None:
    pipe = Pipeline(meta_model(repository, variant), None).to(dtype=dtype)
    plan = Method().plan(pipe.settings(guidance_scale=1.0), pipe.model.info, samples)
    assert not fits_easily(pipe.model, plan, 3 * pipe.dry_run(plan, Method()).peak)
