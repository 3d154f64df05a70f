"""What SkipVAR decides by, and what follows; its reference outputs are among the goldens."""

from __future__ import annotations

import cmath
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from stepvar.core.plan import Plan
from stepvar.core.report import Recorder
from stepvar.core.stack import ModelInfo
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.methods import Compose, DropGuidance, LazyVAR, Method, SkipLast, SkipVAR, StepVAR, make_method
from stepvar.methods.skipvar import (
    CLASSIFIERS,
    Classifiers,
    LinearClassifier,
    Probe,
    edge_change,
    high_frequencies,
)
from stepvar.models.infinity import Infinity, schedule_for
from stepvar.models.infinity.schedules import RATIOS
from tests.helpers import CLIPS, SQUARE, WIDE, equal_everywhere, make_settings
from tests.methods.families import ROWS
from tests.methods.helpers import plan_of, work
from tests.methods.test_matrix import Generation, run


def always(skip: int, branch: int = 0) -> SkipVAR:
    """Decides the same whatever the image is."""

    def classifier(found: int) -> LinearClassifier:
        bias = [float(count == found) for count in range(4)]
        return LinearClassifier((0.0, 0.0), (1.0, 1.0), ((0.0, 0.0),) * 4, bias, range(4))

    return SkipVAR(target=Classifiers(classifier(skip), classifier(branch)))


def generated(method: Method, guidance: float = 3.0) -> Generation:
    return run(ROWS[0], make_settings(SQUARE, guidance), method, [0])


@pytest.mark.parametrize(
    ("decided", "method", "choice"),
    [
        (always(0), Method(), "all"),
        (always(1), SkipLast(1), "skip 1"),
        (always(3), SkipLast(3), "skip 3"),
        (always(0, 1), DropGuidance(last=1), "conditional 1"),
        (always(0, 3), DropGuidance(last=3), "conditional 3"),
    ],
    ids=str,
)
def test_what_follows_is_the_method_that_does_it_always(decided: SkipVAR, method: Method, choice: str) -> None:
    found, wanted = generated(decided), generated(method)
    assert equal_everywhere(found.logits, wanted.logits) and torch.equal(found.latent, wanted.latent)
    assert found.plan.choice == found.report.choice == choice and wanted.report.choice is None
    assert [(scale.grid, scale.branches) for scale in found.report.scales] == [
        (scale.grid, scale.branches) for scale in wanted.report.scales
    ]
    assert f"decided while it ran: {choice}" in str(found.report) and found.report.to_dict()["choice"] == choice


def test_without_guidance_there_is_no_branch_to_drop() -> None:
    assert equal_everywhere(generated(always(0, 3), 1.0).logits, generated(Method(), 1.0).logits)


@pytest.mark.parametrize("name", SkipVAR.presets)
def test_the_plan_is_the_most_that_may_follow(name: str) -> None:
    plan = plan_of(make_method(f"skipvar:{name}"), SQUARE)
    assert plan.decision is not None and plan.decision.after == 1
    costs = {choice: work(way) for choice, way in plan.decision.plans.items()}
    assert max(costs.values()) == work(plan) and min(costs, key=lambda choice: costs[choice]) == "skip 3"
    assert ("all" in costs) == (0 in CLASSIFIERS[name].branch.classes)  # type: ignore[index]
    assert all(way.choice == choice for choice, way in plan.decision.plans.items())


def test_beside_pruning_the_plan_is_what_ran() -> None:
    """StepVAR counts late scales of what is run: of the plan before the decision up to it, of the chosen one then."""
    found = generated(Compose(StepVAR(keep=0.5), always(3)))
    assert [step.tokens[0] for step in found.plan.steps] == [1, 4] and found.plan.choice == "skip 3"
    assert [scale.kept for scale in found.report.scales] == [1, 4]
    pruned = generated(Compose(StepVAR(keep=0.5, last=2), always(0, 2)))
    wanted = generated(Compose(StepVAR(keep=0.5, last=2), DropGuidance(last=2)))
    assert equal_everywhere(pruned.logits, wanted.logits) and work(pruned.plan) == work(wanted.plan)


# Where it is decided


@pytest.mark.parametrize(
    ("resolution", "after", "probe"), [("1M", 9, 4), ("0.25M", 6, 3), ("0.06M", 3, 2)], ids=["1M", "0.25M", "0.06M"]
)
def test_decisions_lie_where_they_were_published_at_every_ratio(resolution: str, after: int, probe: int) -> None:
    for ratio in RATIOS:
        settings = make_settings(schedule_for(resolution, ratio))
        assert (SkipVAR().decision_pass(settings), SkipVAR().probe_pass(settings)) == (after, probe)
        assert len(settings.schedule) - 1 - after == 3


def test_decisions_may_lie_elsewhere() -> None:
    settings, method = make_settings(WIDE), SkipVAR(decide_after=1, probe_scale=3)
    assert (method.decision_pass(settings), method.probe_pass(settings)) == (1, 3)
    assert method.alternatives(settings)[0] == 1
    found = run(ROWS[1], settings, method, [0])
    assert found.plan.choice is not None


def test_images_are_decoded_small_before_and_behind(tiny_model: Infinity) -> None:
    seen: list[Probe] = []

    class Watching(SkipVAR):
        def judge(self, before: Probe, after: Probe) -> Any:
            seen.extend((before, after))
            return super().judge(before, after)

    found = run(ROWS[1], make_settings(WIDE), Watching(probe_scale=2), [0])
    assert found.plan.choice is not None and len(seen) == 2
    assert [tuple(probe.latent.shape) for probe in seen] == [(1, 6, 2, 3)] * 2  # the third scale of WIDE is 2x3
    assert [tuple(probe.image.shape) for probe in seen] == [(1, 3, 4, 6)] * 2
    assert not torch.equal(seen[0].latent, seen[1].latent) and seen[0].image.abs().max() <= 1


# What it is decided by


def grey(image: Tensor) -> list[list[float]]:
    return cast("list[list[float]]", image[0].mean(0).tolist())


def slow_edges(image: Tensor) -> list[float]:
    rows, (height, width) = grey(image), image.shape[-2:]
    kernel = ((1, 0, -1), (2, 0, -2), (1, 0, -1))

    def at(y: int, x: int) -> float:
        return rows[y][x] if 0 <= y < height and 0 <= x < width else 0.0

    found = []
    for y in range(height):
        for x in range(width):
            window = [(i, j, at(y + i - 1, x + j - 1)) for i in range(3) for j in range(3)]
            across = sum(kernel[i][j] * value for i, j, value in window)
            down = sum(kernel[j][i] * value for i, j, value in window)
            found.append((across**2 + down**2) ** 0.5)
    return found


def slow_share(image: Tensor, radius: float) -> float:
    rows, (height, width) = grey(image), image.shape[-2:]
    limit, high, whole = int(radius * min(height, width) / 2), 0.0, 0.0
    for v in range(height):
        for u in range(width):
            waves = (
                rows[y][x] * cmath.exp(-2j * cmath.pi * (v * y / height + u * x / width))
                for y in range(height)
                for x in range(width)
            )
            amplitude = abs(sum(waves))
            down, across = (v + height // 2) % height - height // 2, (u + width // 2) % width - width // 2
            whole += amplitude
            high += amplitude if (down**2 + across**2) ** 0.5 > limit else 0.0
    return high / (whole + 1e-6)


def test_features_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    before, after = (torch.rand(1, 3, 10, 8, generator=generator) * 2 - 1 for _ in range(2))
    edges = [abs(one - other) for one, other in zip(slow_edges(after), slow_edges(before), strict=True)]
    assert edge_change(before, after) == pytest.approx(sum(edges) / len(edges), rel=1e-5)
    for radius in (0.0, 0.3, 0.4, 0.9):
        assert high_frequencies(after, radius) == pytest.approx(slow_share(after, radius), rel=1e-4)


def test_published_classifiers() -> None:
    """Many new edges: everything is run; a smooth image that no longer changes stops early."""
    classifier = CLASSIFIERS["ssim-0.84"].skip
    rough, smooth = classifier.scores((0.3419, 0.5615)), classifier.scores((0.02, 0.35))
    assert rough == pytest.approx([8.326, 4.800, 0.048, -13.174], abs=5e-3)  # as a reference output has it
    assert classifier.choose(rough) == 0 and classifier.choose(smooth) == 3
    assert classifier.choose((1.0, 2.0, 2.0, 0.0)) == 1  # the first of equals
    with pytest.raises(UsageError, match="needs two numbers each for mean, scale and every class"):
        replace(classifier, mean=(0.1,))
    with pytest.raises(UsageError, match="must not be 0"):
        replace(classifier, scale=(0.0, 1.0))


def test_only_an_image_that_is_not_stopped_is_asked_for_its_branch() -> None:
    flat = Probe(torch.zeros(1), torch.zeros(1, 3, 8, 8))
    stopped, whole = always(2).judge(flat, flat), always(0, 1).judge(flat, flat)
    assert (stopped.skip, stopped.branch, stopped.branch_scores) == (2, None, None)
    assert (whole.skip, whole.branch, whole.choice) == (0, 1, "conditional 1")


# What cannot be served


@pytest.mark.parametrize(
    ("method", "schedule", "samples", "said"),
    [
        (SkipVAR(), SQUARE, 2, "2 cannot run together; generate them one by one"),
        (SkipVAR(), CLIPS, 1, "decides by one image, and this model generates videos"),
        (SkipVAR(), ScaleSchedule(SQUARE.grids[:4]), 1, "needs 5 scales .*; this schedule has 4"),
        (SkipVAR(decide_after=2), SQUARE, 1, "decide_after=2: .* among the last 3 of 5 scales; give at most 1"),
        (SkipVAR(probe_scale=5), SQUARE, 1, "probe_scale=5: the schedule has 5 scales; give at most 4"),
        (Compose(SkipLast(3), SkipVAR()), SQUARE, 1, "the last 3 of 5 are not run, so nothing is left to decide"),
    ],
)
def test_what_cannot_be_served_is_refused(method: Method, schedule: Any, samples: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_of(method, schedule, samples=samples)


def test_scales_that_run_together_are_not_parted_by_a_decision() -> None:
    with pytest.raises(UsageError, match="chooses among the last scales, and another method runs them together"):
        Compose(LazyVAR(keep=(0.4, 0.3)), SkipVAR()).plan(make_settings(SQUARE, 1.0), ModelInfo(4), 1)


def test_it_composes_with_a_method_that_skips() -> None:
    plan: Plan = Compose(SkipLast(1), SkipVAR()).plan(make_settings(SQUARE), ModelInfo(4), 1)
    assert plan.decision is not None and len(plan.steps) == 4
    assert {len(way.steps) for way in plan.decision.plans.values()} == {2, 3, 4}


def test_a_choice_says_nothing_where_nothing_was_decided() -> None:
    assert Recorder().report("", "", 1, torch.float32).choice is None
