"""SkipVAR: the image so far decides whether it stops early or goes on with one branch (Li et al.; arXiv 2506.08908)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.stack import ModelInfo, PassResult
from stepvar.core.values import Range, check_fields
from stepvar.errors import UsageError
from stepvar.methods.base import Method, MethodState
from stepvar.methods.drop_guidance import DropGuidance
from stepvar.methods.registry import register

Target = Literal["ssim-0.84", "ssim-0.86", "ssim-0.88"]


@dataclass(frozen=True)
class LinearClassifier:
    """Linear scores of two features, standardised first; the class of the highest score wins.

    Attributes:
        mean, scale: of each feature, on what the classifier was fitted to.
        weights: two for each class.
        bias: one for each class.
        classes: what the scores stand for: a number of scales.
    """

    mean: Sequence[float]
    scale: Sequence[float]
    weights: Sequence[Sequence[float]]
    bias: Sequence[float]
    classes: Annotated[Sequence[int], Range(0, 1000)]

    def __post_init__(self) -> None:
        check_fields(self)
        features = {len(self.mean), len(self.scale), *map(len, self.weights)}
        if features != {2} or not len(self.weights) == len(self.bias) == len(self.classes) > 0:
            raise UsageError(f"{self}: needs two numbers each for mean, scale and every class, one bias a class")
        if 0 in self.scale:
            raise UsageError(f"scale={self.scale}: divides, so it must not be 0")

    def scores(self, features: Sequence[float]) -> list[float]:
        """``W (f - mean) / scale + b``, one for each class, in float64."""
        z = [(f - mean) / scale for f, mean, scale in zip(features, self.mean, self.scale, strict=True)]
        return [w[0] * z[0] + w[1] * z[1] + bias for w, bias in zip(self.weights, self.bias, strict=True)]

    def choose(self, scores: Sequence[float]) -> int:
        """The class of the highest score, the first of equals."""
        return self.classes[scores.index(max(scores))]


@dataclass(frozen=True)
class Classifiers:
    """The two choices of SkipVAR.

    Attributes:
        skip: how many of the last scales are not run.
        branch: if all are, at how many of the last the conditional branch runs alone.
    """

    skip: LinearClassifier
    branch: LinearClassifier

    @property
    def reach(self) -> int:
        """The most scales, counted from the end, that a choice can be about."""
        return max(*self.skip.classes, *self.branch.classes)


def _skip(weights: Sequence[Sequence[float]], bias: Sequence[float]) -> LinearClassifier:
    return LinearClassifier((0.1153, 0.4892), (0.0576, 0.0756), weights, bias, (0, 1, 2, 3))


CLASSIFIERS: dict[Target, Classifiers] = {
    "ssim-0.84": Classifiers(
        _skip(((1.924, 1.724), (0.960, 0.297), (-0.059, -0.551), (-2.825, -1.470)), (-0.891, 0.739, 0.807, -0.655)),
        LinearClassifier(
            (0.1794, 0.5736),
            (0.0627, 0.0540),
            ((1.016, 0.991), (0.317, -0.003), (-1.334, -0.988)),
            (-2.848, 0.456, 2.392),
            (1, 2, 3),
        ),
    ),
    "ssim-0.86": Classifiers(
        _skip(((2.164, 1.666), (1.167, 0.345), (-0.174, -0.668), (-3.157, -1.343)), (0.319, 1.103, 0.525, -1.947)),
        LinearClassifier(
            (0.1666, 0.5568),
            (0.0607, 0.0543),
            ((1.324, 0.560), (0.829, 1.062), (-0.092, -0.286), (-2.060, -1.336)),
            (-5.360, -1.357, 2.728, 3.989),
            (0, 1, 2, 3),
        ),
    ),
    "ssim-0.88": Classifiers(
        _skip(((2.297, 1.679), (1.348, 0.189), (-0.340, -0.562), (-3.304, -1.306)), (1.612, 1.543, 0.186, -3.342)),
        LinearClassifier(
            (0.1512, 0.5424),
            (0.0580, 0.0578),
            ((1.375, 0.857), (0.823, 1.020), (-0.122, -0.503), (-2.076, -1.374)),
            (-6.027, -0.760, 3.035, 3.752),
            (0, 1, 2, 3),
        ),
    ),
}
"""Those released for Infinity-2B at 1024x1024, to three or four decimals, by the SSIM to dense that they aim at."""


class Probe(NamedTuple):
    """The image so far, small.

    Attributes:
        latent: (1, d, h, w).
        image: (1, 3, H, W) in [-1, 1].
    """

    latent: Tensor
    image: Tensor


@dataclass
class SkipVARState(MethodState):
    """What SkipVAR keeps during a generation.

    Attributes:
        probes: the image at the scale before the decision, and behind it.
    """

    probes: list[Probe] = field(default_factory=list)


class Verdict(NamedTuple):
    """What the classifiers say of an image.

    Attributes:
        features: change of edges, share of high frequencies.
        skip_scores, skip: how many of the last scales are not run.
        branch_scores, branch: at how many the conditional branch runs alone; None where the image stops early.
    """

    features: tuple[float, float]
    skip_scores: Sequence[float]
    skip: int
    branch_scores: Sequence[float] | None = None
    branch: int | None = None

    @property
    def choice(self) -> str:
        """Its name among the alternatives."""
        return choice_name(self.skip, self.branch or 0)


def choice_name(skip: int, branch: int) -> str:
    """The name of an alternative: ``"skip 2"``, ``"conditional 3"``, ``"all"``."""
    return f"skip {skip}" if skip else f"conditional {branch}" if branch else "all"


@register
@dataclass(frozen=True)
class SkipVAR(Method[SkipVARState]):
    """Stops early, or goes on with the conditional branch alone, as two classifiers say of the image so far.

    Behind one scale (of 13 the tenth, 32x32 of 64x64) the image so far and that of the scale before are decoded small.
    Two features, how much the edges changed and the share of high frequencies, go to two linear classifiers. The first
    says how many of the last scales are not run; if all are, the second says at how many of them the conditional
    branch runs alone. The report says what was decided. One image at a time, no videos.

    The coefficients are those released for Infinity-2B at 1024x1024 with guidance 4 and temperature 0.5; on another
    model, size or guidance they are used as they are, and what they choose says little. On schedules of other lengths
    the decision leaves as many scales, and the small images have the grid of the scale that lies as far into the
    schedule; both are exact for the published one, at every aspect ratio.

    Attributes:
        target: which classifiers: the SSIM to the dense image that they aim at, or
            :class:`~stepvar.methods.skipvar.Classifiers` of one's own.
        decide_after: the scale behind which is decided, from 0 (published: 9 of 13); None: so that three follow, or
            as many as a classifier of one's own asks for.
        probe_scale: the scale whose grid the small images have (published: 4 of 13); None: a third of the way.
        radius: frequencies beyond this part of half the shorter side are high.
    """

    name: ClassVar[str] = "skipvar"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {name: {"target": name} for name in CLASSIFIERS}

    target: Target | Classifiers = "ssim-0.84"
    decide_after: Annotated[int | None, Range(1, 1000, none="to leave as many scales as may be skipped")] = None
    probe_scale: Annotated[int | None, Range(0, 1000, none="for a third of the way")] = None
    radius: Annotated[float, Range(0, 1)] = 0.4

    @property
    def classifiers(self) -> Classifiers:
        """Those that :attr:`target` names."""
        return self.target if isinstance(self.target, Classifiers) else CLASSIFIERS[self.target]

    # Before the generation.

    def decision_pass(self, settings: Settings) -> int:
        """The pass behind which is decided."""
        return len(settings.schedule) - 1 - self.classifiers.reach if self.decide_after is None else self.decide_after

    def probe_pass(self, settings: Settings) -> int:
        """The pass whose grid the small images have."""
        return round((len(settings.schedule) - 1) / 3) if self.probe_scale is None else self.probe_scale

    def edit(self, settings: Settings) -> Settings:
        schedule, reach = settings.schedule, self.classifiers.reach
        scales, after, probe = len(schedule), self.decision_pass(settings), self.probe_pass(settings)
        if schedule.kv_scope != "all" or any(grid.t > 1 for grid in schedule):
            raise UsageError(f"{self.name}: decides by one image, and this model generates videos; use 'drop-guidance'")
        if scales < reach + 2:
            raise UsageError(
                f"{self.name}: needs {reach + 2} scales to decide by two and leave {reach}; this schedule has {scales}"
            )
        if after + reach >= scales:
            raise UsageError(
                f"decide_after={after}: the classifiers choose among the last {reach} of {scales} scales; "
                f"give at most {scales - 1 - reach}"
            )
        if probe >= scales:
            raise UsageError(f"probe_scale={probe}: the schedule has {scales} scales; give at most {scales - 1}")
        if settings.skipped >= scales - 1 - after:
            raise UsageError(
                f"{self.name}: decides behind scale {after}, and the last {settings.skipped} of {scales} are not run, "
                f"so nothing is left to decide; skip fewer"
            )
        fewest = min(self.classifiers.branch.classes)
        return DropGuidance(last=fewest).edit(settings) if fewest else settings

    def alternatives(self, settings: Settings) -> tuple[int, Mapping[str, Settings]]:
        skip, branch = self.classifiers.skip.classes, self.classifiers.branch.classes
        ways = {choice_name(0, n): DropGuidance(last=n).edit(settings) if n else settings for n in branch}
        ways |= {choice_name(n, 0): settings.without_last(n) for n in skip if n}
        return self.decision_pass(settings), ways

    def check(self, plan: Plan, info: ModelInfo) -> None:
        if plan.samples > 1:
            raise UsageError(
                f"{self.name}: decides for each image which scales follow, so {plan.samples} cannot run together; "
                "generate them one by one, or use 'drop-guidance' or 'skip-last'"
            )
        if any(group[-1] > self.decision_pass(plan.settings) for group in plan.settings.groups):
            raise UsageError(
                f"{self.name}: chooses among the last scales, and another method runs them together; "
                "take one of the two"
            )

    # At a pass.

    def start(self, plan: Plan) -> SkipVARState:
        return SkipVARState()

    def after_pass(self, result: PassResult, step: Step, state: SkipVARState) -> None:
        settings = step.settings
        if step.index not in (self.decision_pass(settings) - 1, self.decision_pass(settings)):
            return
        grid, whole = settings.schedule[self.probe_pass(settings)], settings.schedule.grids[-1]
        height, width = result.latent.shape[-2:]  # a token may be several cells of the latent
        size = (grid.h * height // whole.h, grid.w * width // whole.w)
        latent = F.interpolate(result.latent, size=size, mode="bilinear", align_corners=False)
        state.probes.append(Probe(latent, result.decode(latent)))

    def decide(self, result: PassResult, step: Step, state: SkipVARState) -> str:
        return self.judge(*state.probes).choice

    def judge(self, before: Probe, after: Probe) -> Verdict:
        """What the classifiers say; waits for the device once."""
        images = torch.cat([before.image, after.image]).float().cpu().split(1)
        features = edge_change(*images), high_frequencies(images[1], self.radius)
        skip, branch = self.classifiers.skip, self.classifiers.branch
        scores = skip.scores(features)
        if count := skip.choose(scores):
            return Verdict(features, scores, count)
        branch_scores = branch.scores(features)
        return Verdict(features, scores, 0, branch_scores, branch.choose(branch_scores))


def edge_change(before: Tensor, after: Tensor) -> float:
    """The mean absolute difference of the Sobel magnitudes of two images (1, 3, H, W), of their grey values."""
    return float((sobel(after) - sobel(before)).abs().mean())


def sobel(image: Tensor) -> Tensor:
    """The magnitude of the gradient (1, 1, H, W) of the mean of the channels, with zeros around the image."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1)
    return F.conv2d(image.mean(1, keepdim=True), kernels, padding=1).square().sum(1, keepdim=True).sqrt()


def high_frequencies(image: Tensor, radius: float) -> float:
    """The share of the amplitudes of an image's spectrum beyond a part of half its shorter side."""
    amplitudes = torch.fft.fftshift(torch.fft.fft2(image.mean(1))).abs().squeeze(0)
    height, width = amplitudes.shape
    rows, columns = (torch.arange(side) - side // 2 for side in (height, width))
    limit = int(radius * min(height, width) / 2)
    far = rows[:, None].square() + columns.square() > limit**2
    return float(amplitudes[far].sum() / (amplitudes.sum() + 1e-6))
