"""Goldens of the HART family: whole generations, and its modules one by one."""

from __future__ import annotations

import re
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
from stepvar.models.hart.diffusion import NoiseSchedule
from stepvar.models.hart.model import HARTState
from stepvar.models.hart.rope import map_rotary, rotate_halves, text_rotary
from stepvar.models.precision import Precision, apply_precision
from stepvar.models.var.tokenizer import POLICY as TOKENIZER_POLICY
from stepvar.models.var.tokenizer import as_tokens, shrink
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

    def normal(self, scale: int, turn: int, shape: Sequence[int], device: torch.device) -> Tensor:
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

    def accumulate(self, state: HARTState, indices: Tensor, step: Step, weights: Tensor | None = None) -> None:
        super().accumulate(state, indices, step, weights)
        self.record[f"idx_{step.index}"] = indices
        self.note(step, "idx", indices.flatten())
        self.note(step, "f_hat", state.latent.clone())

    def refine(self, state: HARTState, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise) -> None:
        super().refine(state, tokens, indices, step, noise)
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


def run_modules(golden: Golden) -> Record:
    """Runs each module on what the golden gives it; in low precision all but the tokenizer, in float32."""
    model = build_model(golden)
    apply_precision(model.tokenizer, Precision.of(golden.dtype), TOKENIZER_POLICY)
    return _rotaries(model, golden) | _network(model, golden) | _schedules(golden) | _tokenizer(model, golden)


def _tokenizer(model: HART, golden: Golden) -> Record:
    tokenizer, schedule = model.tokenizer, model.schedule()
    latent = golden.tensor("dec_in")
    record = {"dec_out": tokenizer.decode(latent)}
    if not golden.exact:
        return record
    encoded = tokenizer.encode_latent(golden.tensor("img"))
    plain, _ = tokenizer.quantise_plain(encoded, schedule)
    hybrid, rest = tokenizer.quantise_hybrid(encoded, schedule)
    record["enc_f"] = encoded
    record |= {f"enc_idx_var{scale:02}": index for scale, index in enumerate(plain)}
    record |= {f"enc_idx_or_rest{scale:02}": index for scale, index in enumerate(hybrid)}
    record[f"enc_idx_or_rest{len(hybrid):02}"] = as_tokens(rest)
    total = torch.zeros_like(latent)
    for scale, (_, following) in enumerate(zip(schedule, schedule.grids[1:], strict=False)):
        total = total + tokenizer.contribution(golden.tensor(f"acc_h{scale}"), scale, schedule)
        record |= {f"acc_fhat{scale}": total, f"acc_next{scale}": shrink(total, following)}
    return record


def _rotaries(model: HART, golden: Golden) -> Record:
    """The map's, at the coordinates given (those of the third scale after a text), and the text's from place 0."""
    places, on_map, in_text = (golden.tensor(name) for name in ("rope2d_pos", "rope2d_in", "rope1d_in"))
    schedule, head_dim = model.schedule(), on_map.shape[-1]
    start = places[:, 0, 0]  # of the first cell, whose own coordinates are 0
    positions = torch.arange(schedule[2].size, device=places.device)[None]
    turned = map_rotary(positions, schedule[2], schedule[-1], start, head_dim)
    words = torch.arange(in_text.shape[1], device=in_text.device)[None]
    return {
        "rope2d_cos": turned[0][:, 0],
        "rope2d_sin": turned[1][:, 0],
        "rope2d_out": rotate_halves(on_map.transpose(1, 2), turned).transpose(1, 2),
        "rope1d_out": rotate_halves(in_text.transpose(1, 2), text_rotary(words, head_dim)).transpose(1, 2),
    }


def _network(model: HART, golden: Golden) -> Record:
    """The diffusion network row by row, and guided, where both halves see the inputs of the first.

    The golden does not state how strong its guidance is: the number is read off it, and all else has to agree.
    """
    x, condition, times = (golden.tensor(name) for name in ("net_x", "net_c", "net_t"))
    net, half = model.transformer.diffloss.net, len(x) // 2
    embedded, embeddings = net.embed(condition).unsqueeze(1), net.time_embed(times)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = [net(x[i, None, None], embedded[i : i + 1], embeddings[i]) for i in range(len(x))]
        noise, variance = (torch.cat(part).squeeze(1) for part in zip(*rows, strict=True))
        return noise, variance

    noise, variance = run(torch.cat([x[:half], x[:half]]))
    conditional, unconditional = noise.chunk(2)
    stored = golden.tensor("net_cfg_out")[:half, : x.shape[1]]
    t = ((stored - conditional) / (conditional - unconditional)).median()
    mixed = (1 + t) * conditional - t * unconditional
    guided = torch.cat([torch.cat([mixed, mixed]), variance], dim=-1)
    return {"net_out": torch.cat(run(x), dim=-1), "net_cfg_out": guided}


def _schedules(golden: Golden) -> Record:
    """The tables of every number of steps that the golden has."""
    record: Record = {}
    for name in golden.tensors:
        if found := re.fullmatch(r"sched(\d+)_timesteps", name):
            schedule = NoiseSchedule.of(int(found[1]))
            tables = {
                "betas": schedule.betas,
                "sqrt_recip_alphas_cumprod": schedule.clean,
                "sqrt_recipm1_alphas_cumprod": schedule.noisy,
                "posterior_mean_coef1": schedule.mean_clean,
                "posterior_mean_coef2": schedule.mean_noisy,
                "posterior_log_variance_clipped": schedule.log_variance,
            }
            record[name] = torch.tensor(schedule.timesteps)
            record |= {f"sched{found[1]}_{table}": torch.from_numpy(values) for table, values in tables.items()}
    return record


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
    Kind(
        "hart modules",
        run_modules,
        inputs=r"img|dec_in|acc_h\d+|rope[12]d_in|rope2d_pos|net_[xct]",
        settings=frozenset({"vae", "transformer"}),
        stores=frozenset({"net_x"}),
        reduced="rotary positions, the diffusion head, the decoder",
    ),
)
