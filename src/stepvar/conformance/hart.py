"""Goldens of the HART family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, image_record
from stepvar.conformance.weights import HART_RULE
from stepvar.core.guidance import hold_last, linear_hold, relative_scales
from stepvar.core.noise import Noise, StreamNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.tokens import TokenMap
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.hart import HART, HARTConfig
from stepvar.models.hart.checkpoint import TOP_K
from stepvar.models.hart.model import HARTState
from stepvar.models.var.tokenizer import as_tokens
from stepvar.text import ContextFeatures


class GoldenNoise(StreamNoise):
    """Samples indices with the golden's generator, and takes normal numbers from its tensors.

    The original samples the latter for both branches and uses those of the first.
    """

    def __init__(self, golden: Golden, record: Record) -> None:
        super().__init__(golden.generator())
        self.golden, self.record = golden, record

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        numbers = self.record[f"s{scale:02}.gumbel_exponential"] = super().soft(scale, drawn)
        return numbers

    def normal(self, scale: int, turn: int | str, shape: Sequence[int], device: torch.device) -> Tensor:
        rows = torch.Size(shape[:2]).numel()
        return self.golden.tensor(f"noise{turn}")[:rows].view(tuple(shape)).to(device)


class RecordingHART(RecordingModel[ContextFeatures, HARTState]):
    """Notes both branches of what goes in and of the logits, the indices, the sums, and the steps of the residual."""

    naming = "s{index:02}.{name}"
    model: HART

    def embed(self, state: HARTState, step: Step) -> TokenMap:
        tokens = self.model.embed(state, step)
        self.note(step, "tokens_in", self._both(step, tokens.features, state.condition.null))
        return tokens

    def predict(self, state: HARTState, tokens: TokenMap, step: Step) -> Tensor:
        guided = super().predict(state, tokens, step)
        self.record[f"logits_{step.index}"] = guided
        hidden = self._both(step, tokens.features, state.null_hidden)
        self.note(step, "hidden", hidden)
        last = hidden[:, -1:] if step.index == 0 else hidden
        self.note(step, "logits", self.model.transformer.logits(last, state.condition.pooled[: len(last)]))
        return guided

    def accumulate(
        self, state: HARTState, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        super().accumulate(state, indices, step, weights, mask)
        self.record[f"idx_{step.index}"] = indices
        self.note(step, "idx", indices.flatten())
        self.note(step, "f_hat", state.latent.clone())

    def refine(
        self, state: HARTState, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise, mask: Tensor | None = None
    ) -> None:
        super().refine(state, tokens, indices, step, noise, mask)
        if not step.is_last:
            return
        condition = self.model.residual_condition(tokens, indices)
        self.record["diff.z"] = condition.flatten(0, 1)
        self.record["diff.cfg"] = torch.tensor(step.guidance - 1)
        shape = (step.samples, step.grid.size, self.model.config.tokenizer.channels)
        steps = self.model.transformer.diffloss.steps(
            condition, step.guidance, lambda turn: noise.normal(step.index, turn, shape, condition.device)
        )
        for place, (x, clean) in enumerate(steps):
            self.record[f"diff.step{place}.sample_cond"] = x.flatten(0, 1)
            self.record[f"diff.step{place}.x0_cond"] = clean.flatten(0, 1)
        before = self.record[f"s{step.index:02}.f_hat"]
        self.record["diff.out"] = as_tokens(state.latent - before).flatten(0, 1)

    @staticmethod
    def _both(step: Step, features: Tensor, null: Tensor | None) -> Tensor:
        """At the first scale, with the rows of the unconditional branch, which is run apart."""
        if step.index or null is None or step.branches == 1:
            return features
        return torch.cat([features, null.expand_as(features)])


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    model = build_model(golden).to(golden.dtype)
    text = ContextFeatures.of(*(golden.tensor(f"context{end}") for end in ("", "_mask", "_position_ids")))
    record: Record = {}
    method, noise = Method(), GoldenNoise(golden, record)
    plan = method.plan(read_settings(golden, model), model.info, len(text))
    latent = generate(RecordingHART(model, record), text, plan, method, noise).latent
    return record | image_record(golden, ("f_hat_final", latent), model.tokenizer.decode, "image", unit_range=True)


def build_model(golden: Golden) -> HART:
    """The model of a golden, its weights made by the rule, in float32."""
    config = HARTConfig.published(golden.setting("transformer"), golden.setting("vae"))
    lists = {"transformer": "transformer_params", "tokenizer": "vae_params"}
    return build(golden, lambda: HART(config), lists, HART_RULE)


def read_settings(golden: Golden, model: HART) -> Settings:
    """The settings of the generation; without a seed of a generator it takes the most likely indices."""
    schedule = model.schedule()
    count, about = len(schedule), golden.about
    return Settings(
        schedule,
        guidance=linear_hold(1 + golden.setting("cfg"), count),
        temperature=(1.0,) * count,
        top_k=TOP_K[:count] if "g_seed" in about else 1,
        top_p=about.get("top_p", 0.0),
        smooth=hold_last(relative_scales(count)) if golden.soft else (),
    )


KINDS = (
    Kind(
        "hart",
        run_generation,
        inputs=r"context(_mask|_position_ids)?|noise\d+",
        settings=frozenset({"vae", "transformer"}),
        stores=frozenset({"context"}),
        early=r"s00\.(tokens_in|hidden|logits)|image|img_f32_crop",
        reduced="the first scale, and the decoder on the golden's latent",
    ),
)
