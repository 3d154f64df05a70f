"""A tiny model of each family and short ways to generate with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stepvar.conformance.hart import RecordingHART
from stepvar.conformance.infinity import RecordingInfinity
from stepvar.conformance.infinity_star import RecordingStar
from stepvar.conformance.recording import RecordingModel, State
from stepvar.conformance.star import RecordingSTAR
from stepvar.conformance.switti import RecordingSwitti
from stepvar.conformance.var import RecordingVAR
from stepvar.conformance.varedit import RecordingVAREdit
from stepvar.conformance.weights import HART_RULE, INFINITY_RULE, STAR_RULE, WeightRule
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder
from stepvar.core.stack import Sublayer, SublayerRef
from stepvar.core.tokens import Grid, ScaleSchedule, TokenMap
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.hart import HART, HARTConfig
from stepvar.models.hart.model import HARTState
from stepvar.models.infinity import Infinity, InfinityConfig, TextCondition, TokenizerConfig
from stepvar.models.infinity.model import InfinityState
from stepvar.models.infinity_star.config import InfinityStarConfig
from stepvar.models.infinity_star.model import InfinityStar, StarState, VideoCondition
from stepvar.models.infinity_star.schedules import clip_schedule
from stepvar.models.infinity_star.tokenizer import VideoTokenizerConfig
from stepvar.models.model import VARModel
from stepvar.models.star import STAR, STARConfig
from stepvar.models.star.model import STARState
from stepvar.models.switti import PooledCondition, Switti, SwittiConfig
from stepvar.models.var import VAR, ClassCondition, VARConfig, VQConfig
from stepvar.models.var.model import VARState
from stepvar.models.varedit import EditCondition, VAREdit
from stepvar.models.varedit.model import EditState
from stepvar.text import ContextFeatures, PooledFeatures, TextFeatures

ModelT = TypeVar("ModelT", bound=VARModel)

SQUARE = ScaleSchedule.of([(1, 1), (2, 2), (4, 4), (6, 6), (8, 8)])
WIDE = ScaleSchedule.of([(1, 1), (2, 2), (2, 3), (4, 6), (5, 7), (6, 9)])
LENGTHS = (5, 3, 7)

TINY = InfinityConfig(
    depth=4,
    width=64,
    heads=2,
    block_chunks=2,
    tokenizer=TokenizerConfig(code_bits=6, base_channels=32, multipliers=(1, 2)),
    text_channels=128,
    text_maxlen=16,
    resolution="0.06M",
)

TINY_VAR = VARConfig(
    depth=4,
    width=64,
    heads=2,
    patch_nums=(1, 2, 4, 6, 8),
    classes=10,
    tokenizer=VQConfig(vocabulary=48, channels=6, base_channels=32, multipliers=(1, 2)),
)
"""Its schedule is SQUARE."""

TINY_STAR = InfinityStarConfig(
    depth=3,
    width=64,
    heads=4,
    kv_heads=2,
    tokenizer=VideoTokenizerConfig((8, 8, 16), (True, False), 1, 1, 1, latent_channels=4, token_channels=16),
    block_chunks=3,
    text_channels=128,
    text_maxlen=16,
    semantic_bits=4,
    semantic_scales=2,
    image_repetitions=(2, 2, 1),
    video_repetitions=(2, 1, 1),
    clip_frames=3,
    latents=(2, 4, 7),
    fps=2,
    resolution="tiny",
    shapes=(((1, 2), (2, 3), (4, 6)), ((1, 1), (3, 3), (5, 5))),
)
"""Its frames are 8 pixels per token and half as many latent frames as frames."""

CLIPS = clip_schedule(
    [
        [(Grid(1, 1, 2), 2), (Grid(1, 2, 3), 2), (Grid(1, 4, 6), 1)],
        [(Grid(3, 1, 2), 2), (Grid(3, 2, 3), 1), (Grid(3, 4, 6), 1)],
        [(Grid(3, 1, 2), 2), (Grid(3, 2, 3), 1), (Grid(3, 4, 6), 1)],
    ],
    "clips",
)
"""A still image and two clips of three latent frames."""


TINY_HART = HARTConfig(
    depth=3,
    width=48,
    heads=2,
    patch_nums=(1, 2, 4, 6, 8),
    context_tokens=5,
    context_channels=12,
    diffusion_width=32,
    diffusion_depth=2,
    diffusion_steps=4,
    tokenizer=VQConfig(vocabulary=48, channels=6, base_channels=32, multipliers=(1, 2)),
)
"""Its schedule is SQUARE."""

TINY_SWITTI = SwittiConfig(
    depth=3,
    width=64,
    heads=2,
    patch_nums=(1, 2, 4, 6, 8),
    text_channels=24,
    pooled_channels=16,
    tokenizer=VQConfig(vocabulary=48, channels=6, base_channels=32, multipliers=(1, 2)),
)
"""Its schedule has the grids of SQUARE; a scale attends to itself alone."""

TINY_SWITTI_AR = replace(TINY_SWITTI, cached=True)
"""Likewise; a scale attends to all earlier ones, too."""


TINY_STAR_T2I = STARConfig(
    depth=3,
    width=48,
    heads=2,
    patch_nums=(1, 2, 4, 6, 8),
    text_channels=24,
    text_maxlen=9,
    sampler="1024",
    sampler_first=4,
    tokenizer=VQConfig(vocabulary=48, channels=6, base_channels=32, multipliers=(1, 2)),
)
"""Its schedule is SQUARE, of which the last scale is sampled in steps."""


EVEN_RULE = replace(INFINITY_RULE, patterns=((r".*scale_mul_1H11", 1.0, 0.1), *INFINITY_RULE.patterns))
"""Attention to several tokens at once: as sharp as in the goldens, STAR's two multiply rounding a thousandfold."""


def fill_by_rule(module: torch.nn.Module, seed: int, rule: WeightRule = INFINITY_RULE) -> None:
    """Overwrites all parameters and buffers of a module, in place."""
    weights = {name: rule(name, tuple(tensor.shape), seed) for name, tensor in module.state_dict().items()}
    module.load_state_dict(weights)


def _filled(model: ModelT, seed: int, rule: WeightRule = INFINITY_RULE) -> ModelT:
    """The model, ready to generate, with the weights of the rule."""
    model.eval().requires_grad_(False)
    fill_by_rule(model.transformer, seed, rule)
    fill_by_rule(model.tokenizer, seed, rule)
    return model


def make_model(config: InfinityConfig = TINY, seed: int = 0) -> Infinity:
    """A model with weights by the rule, so that every gate is open and every part matters."""
    return _filled(Infinity(config), seed)


def make_edit(config: InfinityConfig = TINY, seed: int = 0) -> VAREdit:
    """A model that edits images, with weights by the rule."""
    return _filled(VAREdit(config), seed)


def make_source(schedule: ScaleSchedule, count: int = 1, first: int = 0, config: InfinityConfig = TINY) -> Tensor:
    """Latents (count, d, H, W) of images to edit; image i is the same whatever the others are."""
    size = config.latent_size(schedule.grids[-1])
    places = range(first, first + count)
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(3000 + place)) for place in places])


def make_var(config: VARConfig = TINY_VAR, seed: int = 0) -> VAR:
    """A class-conditional model with weights by the rule."""
    return _filled(VAR(config), seed)


def make_star(config: InfinityStarConfig = TINY_STAR, seed: int = 0) -> InfinityStar:
    """A text-to-video model with weights by the rule."""
    return _filled(InfinityStar(config), seed, STAR_RULE)


def make_hart(config: HARTConfig = TINY_HART, seed: int = 0) -> HART:
    """A text-to-image model with a diffusion head, with weights by its rule."""
    return _filled(HART(config), seed, HART_RULE)


def make_star_t2i(config: STARConfig = TINY_STAR_T2I, seed: int = 0) -> STAR:
    """A text-to-image model of the STAR family with weights by the rule."""
    return _filled(STAR(config), seed, EVEN_RULE)


def make_star_text(lengths: Sequence[int] = (5,), first: int = 0) -> TextCondition:
    """Features of one prompt per length, and of as many empty negative prompts."""
    channels = TINY_STAR_T2I.text_channels
    return TextCondition(make_text(lengths, first, channels), make_text([2], 90, channels).repeat(len(lengths)))


def make_switti(config: SwittiConfig = TINY_SWITTI, seed: int = 0) -> Switti:
    """A text-to-image model with text by CLIP, with weights by the rule."""
    return _filled(Switti(config), seed)


def make_pooled(lengths: Sequence[int] = (5,), first: int = 0, config: SwittiConfig = TINY_SWITTI) -> PooledFeatures:
    """Features of one prompt per length; prompt i is the same whatever the others are."""
    size = config.pooled_channels
    pooled = [torch.randn(size, generator=torch.Generator().manual_seed(3000 + first + i)) for i in range(len(lengths))]
    return PooledFeatures(make_text(lengths, first, config.text_channels), torch.stack(pooled))


def make_pooled_condition(lengths: Sequence[int] = (5,), first: int = 0) -> PooledCondition:
    """Prompts, and the same negative one for all of them."""
    return PooledCondition(make_pooled(lengths, first), make_pooled((2,), -1).repeat(len(lengths)))


def make_context(words: Sequence[int] = (3, 5), first: int = 0, config: HARTConfig = TINY_HART) -> ContextFeatures:
    """Features of one prompt per number of words, padded behind; prompt i is the same whatever the others are."""
    size = (config.context_tokens, config.context_channels)
    rows = [torch.randn(size, generator=torch.Generator().manual_seed(2000 + first + i)) for i in range(len(words))]
    return ContextFeatures.of(torch.stack(rows), torch.arange(size[0]) < torch.tensor(words)[:, None])


def make_text(lengths: Sequence[int], first: int = 0, channels: int = TINY.text_channels) -> TextFeatures:
    """Features of one prompt per length; prompt i is the same whatever the others are."""
    rows = torch.zeros(len(lengths), max(lengths), channels)
    for index, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(1000 + first + index)
        rows[index, :length] = torch.randn(length, channels, generator=generator)
    return TextFeatures(rows, tuple(lengths))


def make_settings(schedule: ScaleSchedule, guidance: float | Sequence[float] = 3.0, **settings: Any) -> Settings:
    scales = len(schedule)
    values = tuple(guidance) if isinstance(guidance, Sequence) else (float(guidance),) * scales
    return Settings(schedule, values, (1.0,) * scales, **settings)


@dataclass
class Generation(Generic[State]):
    """What a generation went through."""

    record: dict[str, Tensor]
    state: State
    plan: Plan
    selections: Mapping[int, Sequence[Tensor]]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.plan.steps

    def kept(self, step: Step) -> Sequence[Tensor]:
        """What a method kept at a pass: (R, K) for each selection."""
        return self.selections.get(step.index, ())

    @property
    def bits(self) -> list[Tensor]:
        """Infinity: per scale (B, 1, h, w, d)."""
        return [self.record[f"bits_{step.index}"] for step in self.steps]

    @property
    def indices(self) -> list[Tensor]:
        """VAR: per scale (B, N)."""
        return [self.record[f"idx_{step.index}"] for step in self.steps]

    @property
    def logits(self) -> list[Tensor]:
        return [self.record[f"logits_{step.index}"] for step in self.steps]

    def passes(self, name: str) -> list[Tensor]:
        """InfinityStar: what was noted of every pass: ``"tokens_in"``, ``"hidden"``, ``"logits"`` or ``"bits"``."""
        names = [f"step{step.index:03d}.{name}" for step in self.steps]
        return [self.record[name] for name in names if name in self.record]


def generate_infinity(
    model: Infinity,
    settings: Settings,
    method: Method | None = None,
    text: TextFeatures | None = None,
    negative: TextFeatures | None = None,
    first: int = 0,
    forced: Mapping[int, Tensor] | None = None,
) -> Generation[InfinityState]:
    """Generates; image i has the seed ``first + i``; ``forced`` are bits (B, N, d) by pass in place of sampled ones."""
    text = text or make_text((5,), first)
    recording = RecordingInfinity(model, {})
    return _generate(recording, TextCondition(text, negative), len(text), settings, method, first, forced)


def generate_edit(
    model: VAREdit,
    settings: Settings,
    method: Method | None = None,
    text: TextFeatures | None = None,
    negative: TextFeatures | None = None,
    first: int = 0,
    source: Tensor | None = None,
) -> Generation[EditState]:
    """Generates; image i has the seed ``first + i``, and by default a source of its own."""
    text = text or make_text((5,), first)
    if source is None:
        source = make_source(settings.schedule, len(text), first, model.config)
    recording: Any = RecordingVAREdit(model, {})
    return _generate(recording, EditCondition(text, negative, source), len(text), settings, method, first)


def generate_var(
    model: VAR, settings: Settings, method: Method | None = None, labels: Sequence[int] = (3,), first: int = 0
) -> Generation[VARState]:
    """Generates; image i has the seed ``first + i``."""
    return _generate(RecordingVAR(model, {}), ClassCondition(tuple(labels)), len(labels), settings, method, first)


def generate_star(
    model: InfinityStar,
    settings: Settings,
    method: Method | None = None,
    text: TextFeatures | None = None,
    negative: TextFeatures | None = None,
    first: int = 0,
    forced: Mapping[int, Tensor] | None = None,
) -> Generation[StarState]:
    """Generates; video i has the seed ``first + i``; ``forced`` are bits (B, N, d) by pass in place of sampled ones."""
    text = text or make_text((5,), first)
    recording = RecordingStar(model, {})
    return _generate(recording, VideoCondition(text, negative), len(text), settings, method, first, forced)


def generate_hart(
    model: HART, settings: Settings, method: Method | None = None, text: ContextFeatures | None = None, first: int = 0
) -> Generation[HARTState]:
    """Generates; image i has the seed ``first + i``."""
    text = text or make_context((3,), first)
    return _generate(RecordingHART(model, {}), text, len(text), settings, method, first)


def generate_star_t2i(
    model: STAR, settings: Settings, method: Method | None = None, text: TextCondition | None = None, first: int = 0
) -> Generation[STARState]:
    """Generates; image i has the seed ``first + i``."""
    text = text or make_star_text((5,), first)
    return _generate(RecordingSTAR(model, {}), text, len(text.prompts), settings, method, first)


def generate_switti(
    model: Switti,
    settings: Settings,
    method: Method | None = None,
    condition: PooledCondition | None = None,
    first: int = 0,
) -> Generation[InfinityState]:
    """Generates; image i has the seed ``first + i``."""
    condition = condition or make_pooled_condition(first=first)
    return _generate(RecordingSwitti(model, {}), condition, len(condition.prompts), settings, method, first)


def _generate(
    model: RecordingModel[Any, State],
    condition: Any,
    samples: int,
    settings: Settings,
    method: Method | None,
    first: int,
    forced: Mapping[int, Tensor] | None = None,
) -> Generation[State]:
    noise, method, recorder = SeededNoise(range(first, first + samples)), method or Method(), Recorder()
    plan = method.plan(replace(settings, forced=frozenset(forced or ())), model.info, samples)
    state = generate(model, condition, plan, method, noise, forced, recorder)
    return Generation(model.record, state, plan, recorder.selections)


@dataclass(frozen=True)
class Watch(Method):
    """Dense generation that keeps what every sub-layer is given, by (scale, layer, sub-layer)."""

    seen: dict[tuple[int, int, str], TokenMap] = field(default_factory=dict)

    def run_sublayer(self, run: Sublayer, tokens: TokenMap, ref: SublayerRef, step: Step, state: Any) -> Tensor:
        self.seen[(step.index, ref.layer, ref.name)] = tokens
        return run(tokens)


def equal_everywhere(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
