"""Goldens of the STAR family: whole generations, with and without the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, image_record
from stepvar.conformance.var import tokenizer_config
from stepvar.core.guidance import linear
from stepvar.core.noise import Noise, StreamNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.tokens import TokenMap
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.infinity import TextCondition
from stepvar.models.star import STAR, PooledText, STARConfig
from stepvar.models.star.model import STARState
from stepvar.models.star.sampler import Sampler, head_steps
from stepvar.models.var.tokenizer import as_tokens
from stepvar.text import TextFeatures


class GoldenNoise(StreamNoise):
    """Takes the golden's random numbers: for the draws of each scale, or of each of its steps and their order."""

    def __init__(self, golden: Golden) -> None:
        super().__init__(golden.generator())
        self.golden = golden

    def exponential(self, scale: int, shape: Sequence[int], device: torch.device, name: str | None = None) -> Tensor:
        kind, turn = (name or "step 0").split()
        stored = f"{'exp' if kind == 'step' else 'rand'}_{scale}_{turn}"
        if name is None and f"exp_{scale}" in self.golden.tensors:
            stored = f"exp_{scale}"
        return self.golden.tensor(stored).view(tuple(shape)).to(device)


class RecordingSampler(Sampler):
    """Notes the logits of every step before guidance, with those of the text token."""

    def __init__(self, model: STAR, state: STARState, tokens: TokenMap, step: Step, record: Record) -> None:
        super().__init__(model, state, tokens, step)
        self.record, self.turn = record, head_steps(model.config, step.index)

    def row_logits(self, codes: Tensor, rows: int) -> Tensor:
        logits = super().row_logits(codes, rows)
        self.record[f"sampler_logits_{self.step.index}_{self.turn}"] = logits
        self.turn += 1
        return logits


class RecordingSTAR(RecordingModel[TextCondition, STARState]):
    """Also notes the indices, and all steps of a scale that is sampled in several."""

    model: STAR

    def sample(
        self, state: STARState, tokens: TokenMap, logits: Tensor, step: Step, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        if not self.model.in_steps(step):
            indices, weights = super().sample(state, tokens, logits, step, noise)
            self.note(step, "idx", indices)
            return indices, weights
        sampler = RecordingSampler(self.model, state, tokens, step, self.record)
        if not head_steps(self.model.config, step.index):  # those of the first step were made by ``predict``
            codes = tokens.features.new_zeros(*sampler.shape, self.model.config.tokenizer.channels)
            logits = sampler.logits(codes)
        for turn, draw in enumerate(sampler.draws(logits, noise)):
            self.record[f"logits_{step.index}_{turn}"] = draw.logits
            self.record[f"idx_{step.index}_{turn}"] = draw.sampled
        self.note(step, "idx", draw.indices)
        self.note(step, "codes", as_tokens(self.model.tokenizer.codes(draw.indices, step.grid)))
        return draw.indices, None


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    model = build_model(golden).to(golden.dtype)
    condition = read_texts(golden)
    record: Record = {}
    method = Method()
    plan = method.plan(read_settings(golden, model), model.info, len(condition.prompts))
    state = generate(RecordingSTAR(model, record), condition, plan, method, GoldenNoise(golden))
    return record | image_record(golden, ("f_hat", state.latent), model.tokenizer.decode, unit_range=True)


def build_model(golden: Golden) -> STAR:
    """The model of a golden, its weights made by the rule, in float32."""
    sampled = golden.setting("sampler")
    config = STARConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        patch_nums=tuple(golden.setting("patch_nums")),
        tokenizer=tokenizer_config(golden),
        text_channels=golden.setting("text_dim"),
        rope_theta=golden.setting("rope_theta"),
        rope_span=golden.setting("rope_norm"),
        head_norm=golden.setting("logit_norm"),
        first_row_cross=True,
        sampler=("1024" if golden.setting("sample_version") == "1024" else "new") if sampled else None,
        sampler_first=golden.setting("sample_from_idx") if sampled else 1,
    )
    lists = {"transformer": "transformer_state_dict", "tokenizer": "vae_state_dict"}
    return build(golden, lambda: STAR(config), lists, ignorable=("class_emb.weight",))


def read_texts(golden: Golden) -> PooledText:
    """The prompts, and the one negative prompt for each of them."""
    lengths = golden.tensor("text_lens").tolist()
    features, pooled = golden.tensor("text_feats"), golden.tensor("text_pooled")
    count = len(features) - 1
    return PooledText(
        TextFeatures(features[:count], tuple(lengths[:count])),
        TextFeatures(features[count:], tuple(lengths[count:])).repeat(count),
        pooled[:count],
        pooled[count:].expand(count, -1),
    )


def read_settings(golden: Golden, model: STAR) -> Settings:
    """The settings of the generation."""
    schedule, scale = model.schedule(), 1 + golden.setting("cfg")
    return Settings(
        schedule,
        guidance=linear(scale, len(schedule)),
        full_guidance=scale,
        temperature=(1.0,) * len(schedule),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
    )


KINDS = (
    Kind(
        "star",
        run_generation,
        inputs=r"text_(feats|pooled|lens)|(exp|rand)_\d+(_\d+)?",
        settings=frozenset({"patch_nums", "text_dim", "sampler", "logit_norm", "cfg"}),
        stores=frozenset({"text_pooled"}),
        early=r"hidden_0|logits_0|blockout_s0_\w+|img_f32(_crop)?",
        reduced="the first scale, and the decoder on the golden's codes",
    ),
)
