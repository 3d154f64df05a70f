"""Goldens of the Infinity family: whole generations, the tokenizer's encoder, and single functions."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.conformance.fastvar import read_method
from stepvar.conformance.goldens import Golden, fill_golden
from stepvar.conformance.recording import Record, RecordBlocks, RecordingModel
from stepvar.conformance.setup import Setup
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Plan, Step
from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import CheckpointError
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity import Infinity, InfinityConfig, TextCondition, TokenizerConfig
from stepvar.models.infinity.model import InfinityState
from stepvar.models.infinity.tokenizer import POLICY, BitTokenizer, resize
from stepvar.models.precision import Precision, apply_precision
from stepvar.text import TextFeatures

GENERATION_INPUTS = r"text_\w+|neg_\w+"
TOKENIZER_INPUTS = r"img"


class RecordingInfinity(RecordingModel[TextCondition, InfinityState]):
    """Also notes the condition and the bits."""

    def __init__(self, model: Infinity, record: Record) -> None:
        super().__init__(model, record)
        self.infinity = model

    def start(self, condition: TextCondition, plan: Plan, method: Method) -> InfinityState:
        state = super().start(condition, plan, method)
        self.record["cond_BD"] = state.condition.pooled
        return state

    def accumulate(self, state: InfinityState, symbols: Tensor, step: Step, weights: Tensor | None = None) -> None:
        self.record[f"bits_{step.index}"] = frames_last(self.infinity.latent_bits(symbols, step))
        super().accumulate(state, symbols, step, weights)


def frames_last(bits: Tensor) -> Tensor:
    """Bits (B, d, h, w) -> (B, 1, h, w, d), the layout of the goldens."""
    return bits.movedim(1, -1).unsqueeze(1)


@torch.inference_mode()
def run_generation(golden: Golden, setup: Setup) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name.

    In low precision only what comes before the first sampled bit can be compared, and the decoder, which then
    gets the golden's codes.
    """
    model = build_model(golden).to(setup.device, setup.dtype)
    condition = read_condition(golden)
    plan = read_plan(golden, model)
    noise = StreamNoise(torch.Generator().manual_seed(golden.config.get("g_seed", 0)))
    record: Record = {}
    recording = RecordingInfinity(model, record)
    method = RecordBlocks(record, read_method(golden, plan.schedule))
    state = generate(recording, condition, len(condition.prompts), plan, method, noise)
    record["ca_kv"] = _packed(state.condition.text, condition, plan)
    record |= _unused_tokens(model, state, plan, len(method.edit(plan).passes))
    if setup.exact:
        return record | {"summed_codes": state.latent} | _images(model.decode(state), golden)
    early = {name: value for name, value in record.items() if _before_first_bit(name)}
    if "summed_codes" not in golden.tensors:
        return early
    state.latent = golden.tensor("summed_codes").to(setup.device)
    images = _images(model.decode(state), golden)
    images.pop("img_u8_bgr")
    return early | images


def build_model(golden: Golden) -> Infinity:
    """The model of a golden, its weights made by the rule, in float32 on the CPU.

    Raises:
        CheckpointError: if the model has other weights than the golden lists.
    """
    patchify = bool(golden.setting("apply_spatial_patchify"))
    config = InfinityConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        block_chunks=golden.setting("block_chunks"),
        tokenizer=_tokenizer_config(golden),
        text_channels=golden.setting("Ct5"),
        text_maxlen=golden.setting("text_maxlen"),
        patchify=patchify,
        level_every_chunk=not golden.setting("add_lvl_embeding_only_first_block"),
        resolution=golden.setting("pn"),
    )
    with torch.device("meta"):
        model = Infinity(config)
    for part, listed in (("transformer", "transformer_state_dict"), ("tokenizer", "vae_state_dict")):
        module = model.get_submodule(part)
        fill_golden(module, golden, f"{golden.path}: {part}", listed)
    return model.eval().requires_grad_(False)


def _tokenizer_config(golden: Golden) -> TokenizerConfig:
    multipliers = (1, 2, 4, 4) if golden.setting("apply_spatial_patchify") else (1, 2, 4, 4, 4)
    return TokenizerConfig(golden.setting("vae_d"), golden.setting("vae_ch"), multipliers)


def read_plan(golden: Golden, model: Infinity) -> Plan:
    """The settings of the generation.

    Raises:
        CheckpointError: if the golden's schedule is not the published one.
    """
    schedule = model.schedule(golden.setting("h_div_w"), golden.setting("pn"))
    stored = golden.about.get("scale_schedule")
    if stored is not None and ScaleSchedule.of(stored).grids != schedule.grids:
        raise CheckpointError(f"{golden.path}: its schedule {stored} is not the published one, {schedule.name}")
    places = golden.setting("cfg_insertion_layer")
    return Plan(
        schedule,
        guidance=_per_scale(golden.setting("cfg_list"), len(schedule)),
        temperature=_per_scale(golden.setting("tau_list"), len(schedule)),
        cfg_layers=tuple(places) if isinstance(places, list) else (places,),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
    )


def _per_scale(value: Any, scales: int) -> tuple[float, ...]:
    return tuple(map(float, value[:scales])) if isinstance(value, list) else (float(value),) * scales


def read_condition(golden: Golden) -> TextCondition:
    """The text features: packed in the golden, padded here."""
    prompts = _unpack(golden.tensor("text_feats"), golden.tensor("text_lens"))
    # The names of a negative prompt's tensors are not fixed beyond their beginning; their types tell them apart.
    negative = [tensor for name, tensor in golden.tensors.items() if name.startswith("neg_")]
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


def _before_first_bit(name: str) -> bool:
    return name in ("cond_BD", "ca_kv", "hidden_0", "logits_0") or name.startswith("blockout_s0_")


def _unused_tokens(model: Infinity, state: InfinityState, plan: Plan, ran: int) -> Record:
    """What the first skipped scale would have read: the original prepares it before it skips."""
    steps = list(plan.steps(len(state.latent)))
    return {f"tokens_in_{ran}": model.next_tokens(state.latent, steps[ran])} if ran < len(steps) else {}


def _images(pixels: Tensor, golden: Golden) -> Record:
    """Pixels (B, 3, H, W) in [-1, 1] in the forms that goldens use; bytes are truncated, blue comes first."""
    levels = ((pixels.float() + 1) / 2).permute(0, 2, 3, 1) * 255
    images = {"img_f32": pixels, "img_u8_bgr": levels.to(torch.uint8).flip(-1)}
    if "img_f32_crop" in golden.tensors:
        h, w = golden.tensors["img_f32_crop"].shape[-2:]
        images["img_f32_crop"] = pixels[..., :h, :w]
    return images


@torch.inference_mode()
def run_tokenizer(golden: Golden, setup: Setup) -> Record:
    """Encodes the golden's image, quantises it scale by scale, decodes it.

    In low precision the quantiser and the decoder, too, start from what the golden stores.
    """
    with torch.device("meta"):
        tokenizer = BitTokenizer(_tokenizer_config(golden))
    fill_golden(tokenizer, golden, f"{golden.path}: tokenizer")
    apply_precision(tokenizer.to(setup.device), Precision.of(setup.dtype), POLICY)
    schedule = ScaleSchedule.of(golden.setting("schedule"))
    encoded = tokenizer.encode_latent(golden.tensor("img").to(setup.device))
    latent = encoded if setup.exact else golden.tensor("h").to(setup.device)
    bits, total = tokenizer.quantise(latent, schedule)
    codes = total if setup.exact else golden.tensor("z").to(setup.device)
    record = {"h": encoded, "z": total, "rec": tokenizer.decode(codes)}
    record |= {f"bits_{index}": frames_last(bit) for index, bit in enumerate(bits)}
    return record | _coarse_inputs(tokenizer, bits, schedule)


def _coarse_inputs(tokenizer: BitTokenizer, bits: list[Tensor], schedule: ScaleSchedule) -> Record:
    """The sum of codes so far, averaged down to the next scale: (B, d, 1, h, w) per scale but the first."""
    full = schedule.grids[-1]
    totals = accumulate(resize(tokenizer.codes(bit), (full.h, full.w)) for bit in bits)
    pairs = zip(schedule.grids[1:], totals, strict=False)
    coarse = (F.interpolate(total, (grid.h, grid.w), mode="area") for grid, total in pairs)
    return {f"var_input_{index}": latent.unsqueeze(2) for index, latent in enumerate(coarse)}
