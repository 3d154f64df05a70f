"""Goldens of the Infinity family: generations, dense or with FastVAR, and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, image_record
from stepvar.core.noise import Noise, StreamNoise
from stepvar.core.plan import Plan, Settings, Step
from stepvar.core.report import Recorder
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import CheckpointError
from stepvar.generation import generate
from stepvar.methods import FastVAR, Method
from stepvar.models.infinity import Infinity, InfinityConfig, TextCondition, TokenizerConfig, schedule_for
from stepvar.models.infinity.model import InfinityState
from stepvar.models.infinity.tokenizer import POLICY, BitTokenizer, resize
from stepvar.models.precision import Precision, apply_precision
from stepvar.text import TextFeatures


class RecordingInfinity(RecordingModel[TextCondition, InfinityState]):
    """Also notes the condition and the bits."""

    model: Infinity

    def begin(self, staged: Any, plan: Plan) -> InfinityState:
        state = super().begin(staged, plan)
        self.record["cond_BD"] = state.condition.pooled
        return state

    def accumulate(
        self,
        state: InfinityState,
        indices: Tensor,
        step: Step,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.note(step, "bits", frames_last(self.model.latent_bits(indices, step)))
        super().accumulate(state, indices, step, weights, mask)


def frames_last(bits: Tensor) -> Tensor:
    """Bits (B, d, h, w) -> (B, 1, h, w, d), the layout of the goldens."""
    return bits.movedim(1, -1).unsqueeze(1)


def run_generation(golden: Golden, method_of: Callable[[ScaleSchedule], Method] | None = None) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name.

    Args:
        method_of: the golden's method on a schedule; None: dense or FastVAR.
    """
    settings = read_settings(golden)
    method = (method_of or partial(read_method, golden))(settings.schedule)
    record, recorder = record_generation(golden, recording_of(golden), settings, method)
    if method_of is None:
        for index, kept in recorder.selections.items():
            record |= dict(zip(_selections(golden, index), kept, strict=True))
    return record


def recording_of(golden: Golden) -> RecordingInfinity:
    """The model of a golden of Infinity, which notes what passes through it."""
    return RecordingInfinity(build_model(golden, Infinity).to(golden.dtype), {})


def record_generation(
    golden: Golden,
    recording: RecordingInfinity,
    settings: Settings,
    method: Method,
    noise: Noise | None = None,
    condition: TextCondition | None = None,
) -> tuple[Record, Recorder]:
    """What a generation leaves of what goldens store, by name, and its report.

    Args:
        recording: of this family or one made from it.
        noise: where random numbers come from; None: the golden's generator.
        condition: None: the golden's texts.
    """
    model, record, recorder = recording.model, recording.record, Recorder()
    condition = read_condition(golden) if condition is None else condition
    plan = method.plan(settings, model.info, len(condition.prompts))
    noise = noise or StreamNoise(golden.generator())
    state = generate(recording, condition, plan, method, noise, recorder=recorder)
    record["ca_kv"] = _packed(state.condition.text, condition, plan)
    for skipped in Method().plan(settings, model.info, plan.samples).steps[len(plan.steps) :][:1]:
        # The original prepares the next scale before it skips it.
        record[f"tokens_in_{skipped.index}"] = model.next_tokens(state.latent, skipped)
    record |= image_record(golden, ("summed_codes", state.latent), model.tokenizer.decode)
    if "img_f32" in record:
        # The original cuts numbers off instead of rounding them, and puts blue first.
        levels = ((record["img_f32"] + 1) / 2).permute(0, 2, 3, 1) * 255
        record["img_u8_bgr"] = levels.to(torch.uint8).flip(-1)
    return record, recorder


Model = TypeVar("Model", bound=Infinity)


def build_model(golden: Golden, kind: type[Model]) -> Model:
    """The model of a golden, of Infinity's class or one made from it, its weights made by the rule, in float32."""
    config = InfinityConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        block_chunks=golden.setting("block_chunks"),
        tokenizer=_tokenizer_config(golden),
        text_channels=golden.setting("Ct5"),
        text_maxlen=golden.setting("text_maxlen"),
        patchify=bool(golden.setting("apply_spatial_patchify")),
        level_every_chunk=not golden.setting("add_lvl_embeding_only_first_block"),
        resolution=golden.setting("pn"),
    )
    lists = {"transformer": "transformer_state_dict", "tokenizer": "vae_state_dict"}
    return build(golden, lambda: kind(config), lists)


def _tokenizer_config(golden: Golden) -> TokenizerConfig:
    multipliers = (1, 2, 4, 4) if golden.setting("apply_spatial_patchify") else (1, 2, 4, 4, 4)
    return TokenizerConfig(golden.setting("vae_d"), golden.setting("vae_ch"), multipliers)


def read_settings(golden: Golden) -> Settings:
    """The settings of the generation.

    Raises:
        CheckpointError: if the golden's schedule is not the published one.
    """
    schedule = schedule_for(golden.setting("pn"), golden.setting("h_div_w"))
    stored = golden.about.get("scale_schedule")
    if stored is not None and ScaleSchedule.of(stored).grids != schedule.grids:
        raise CheckpointError(f"{golden.path}: its schedule {stored} is not the published one, {schedule.name}")
    places = golden.setting("cfg_insertion_layer")
    return Settings(
        schedule,
        guidance=_per_scale(golden.setting("cfg_list"), len(schedule)),
        temperature=_per_scale(golden.setting("tau_list"), len(schedule)),
        cfg_layers=tuple(places) if isinstance(places, list) else (places,),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
    )


def _per_scale(value: Any, scales: int) -> tuple[float, ...]:
    return tuple(map(float, value[:scales])) if isinstance(value, list) else (float(value),) * scales


def read_method(golden: Golden, schedule: ScaleSchedule) -> Method:
    """FastVAR where the golden has its settings, by width of the grid, else dense generation.

    Raises:
        CheckpointError: if its pruned scales are not neighbours, between the cached one and the skipped ones.
    """
    settings = golden.config.get("fastvar")
    if settings is None:
        return Method()
    widths = [grid.w for grid in schedule]
    skip = sum(width in settings["skip_w"] for width in widths)
    run = widths[: len(widths) - skip]
    shares = tuple(settings["ratios"][str(width)] for width in run if str(width) in settings["ratios"])
    first, last = settings["layers"]
    cached = schedule[len(run) - len(shares) - 1]
    if [cached.h, cached.w] != settings["cached_hw"] or any(
        str(width) not in settings["ratios"] for width in run[-len(shares) :]
    ):
        raise CheckpointError(f"{golden.path}: fastvar settings {settings} are not those of neighbouring late scales")
    return FastVAR(prune=shares, skip=skip, blocks_before=first, blocks_after=golden.setting("depth") - last)


def _selections(golden: Golden, index: int) -> list[str]:
    """Names of what FastVAR keeps at a pass, in the order in which the sub-layers run."""
    layers = range(*golden.config["fastvar"]["layers"])
    return [f"kept_s{index}_l{layer}_{sublayer}" for layer in layers for sublayer in ("sa", "ca", "ffn")]


def read_condition(golden: Golden) -> TextCondition:
    """The text features: packed in the golden, padded here."""
    prompts = _unpack(golden.tensor("text_feats"), golden.tensor("text_lens"))
    # The names of a negative prompt's tensors are not fixed beyond their beginning; their types tell them apart.
    negative = [golden.tensor(name) for name in golden.tensors if name.startswith("neg_")]
    features = [tensor for tensor in negative if tensor.is_floating_point()]
    lengths = [tensor for tensor in negative if not tensor.is_floating_point()]
    if not features:
        return TextCondition(prompts)
    if len(features) != 1 or len(lengths) != 1:
        raise CheckpointError(f"{golden.path}: needs one neg_ tensor of features and one of lengths")
    return TextCondition(prompts, _unpack(features[0], lengths[0]))


def _unpack(packed: Tensor, lengths: Tensor) -> TextFeatures:
    """Features (sum of lengths, C) -> (B, longest, C); lengths (B,), or where each begins and ends (B + 1,)."""
    counts = lengths.tolist()
    if counts[0] == 0:
        counts = lengths.diff().tolist()
    return TextFeatures(pad_sequence(list(packed.split(counts)), batch_first=True), tuple(counts))


def _packed(text: Tensor, condition: TextCondition, plan: Plan) -> Tensor:
    """Text (R, L, C) without its padding: (sum of lengths, C)."""
    lengths = condition.prompts.lengths
    if plan.guided:
        lengths += (condition.negative or condition.prompts).lengths
    return torch.cat([row[:length] for row, length in zip(text, lengths, strict=True)])


def run_tokenizer(golden: Golden) -> Record:
    """Encodes the golden's image, quantises it scale by scale, decodes it."""
    tokenizer = build(golden, lambda: BitTokenizer(_tokenizer_config(golden)), {"": "vae_state_dict"})
    apply_precision(tokenizer, Precision.of(golden.dtype), POLICY)
    schedule = ScaleSchedule.of(golden.setting("schedule"))
    encoded = tokenizer.encode_latent(golden.tensor("img"))
    bits, total = tokenizer.quantise(golden.resume("h", encoded), schedule)
    record = {"h": encoded, "z": total, "rec": tokenizer.decode(golden.resume("z", total))}
    record |= {f"bits_{index}": frames_last(bit) for index, bit in enumerate(bits)}
    return record | _coarse_inputs(tokenizer, bits, schedule)


def _coarse_inputs(tokenizer: BitTokenizer, bits: list[Tensor], schedule: ScaleSchedule) -> Record:
    """The sum of codes so far, averaged down to the next scale: (B, d, 1, h, w) per scale but the first."""
    full = schedule.grids[-1]
    totals = accumulate(resize(tokenizer.codes(bit), (full.h, full.w)) for bit in bits)
    pairs = zip(schedule.grids[1:], totals, strict=False)
    coarse = (F.interpolate(total, (grid.h, grid.w), mode="area") for grid, total in pairs)
    return {f"var_input_{index}": latent.unsqueeze(2) for index, latent in enumerate(coarse)}


GENERATION = Kind(
    "infinity",
    run_generation,
    inputs=r"text_\w+|neg_\w+",
    settings=frozenset({"cfg_insertion_layer", "embed_dim", "Ct5"}),
    early=r"cond_BD|ca_kv|hidden_0|logits_0|blockout_s0_\w+|img_f32(_crop)?",
    reduced="the text, the first scale, and the decoder on the golden's codes",
)
"""Whole generations; those with a method that has goldens of its own name it in ``config.kind``."""

KINDS = (
    GENERATION,
    Kind(
        "bit tokenizer",
        run_tokenizer,
        inputs=r"img",
        settings=frozenset({"vae_d", "schedule", "apply_spatial_patchify"}),
        reduced="the encoder, the quantiser on the golden's latents, and the decoder on its codes",
    ),
)
