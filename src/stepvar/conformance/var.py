"""Goldens of the VAR family: whole generations, and the tokenizer's encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.conformance.golden import Golden, Kind, Record, build
from stepvar.conformance.recording import RecordingModel, image_record
from stepvar.core.guidance import linear, relative_scales
from stepvar.core.noise import StreamNoise
from stepvar.core.plan import Settings, Step
from stepvar.core.tokens import ScaleSchedule
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.precision import Precision, apply_precision
from stepvar.models.var import VAR, ClassCondition, VARConfig, VQConfig
from stepvar.models.var.model import VARState
from stepvar.models.var.tokenizer import POLICY, VQTokenizer, as_tokens, shrink


class RecordingVAR(RecordingModel[ClassCondition, VARState]):
    """Also notes the indices."""

    def accumulate(
        self, state: VARState, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.note(step, "idx", indices)
        super().accumulate(state, indices, step, weights, mask)


def run_generation(golden: Golden) -> Record:
    """Generates what the golden describes and returns everything that it may store, by name."""
    model = build_model(golden).to(golden.dtype)
    generator = golden.generator()
    condition = read_classes(golden, generator)
    record: Record = {}
    method = Method()
    plan = method.plan(read_settings(golden, model), model.info, len(condition.labels))
    state = generate(RecordingVAR(model, record), condition, plan, method, StreamNoise(generator))
    return record | image_record(golden, ("f_hat", state.latent), model.tokenizer.decode, unit_range=True)


def build_model(golden: Golden) -> VAR:
    """The model of a golden, its weights made by the rule, in float32."""
    config = VARConfig(
        depth=golden.setting("depth"),
        width=golden.setting("embed_dim"),
        heads=golden.setting("num_heads"),
        patch_nums=tuple(golden.setting("patch_nums")),
        shared_adaln=bool(golden.setting("shared_aln")),
        classes=golden.setting("num_classes"),
        tokenizer=tokenizer_config(golden),
    )
    return build(golden, lambda: VAR(config), {"transformer": "transformer_state_dict", "tokenizer": "vae_state_dict"})


def tokenizer_config(golden: Golden) -> VQConfig:
    """The tokenizer of a golden."""
    return VQConfig(golden.setting("V"), golden.setting("Cvae"), golden.setting("vae_ch"))


def read_classes(golden: Golden, generator: torch.Generator) -> ClassCondition:
    """The classes that the golden names, or those that its generator samples first."""
    labels = golden.config.get("labels")
    if labels is None:
        even = torch.full((golden.setting("num_classes"),), 1 / golden.setting("num_classes"))
        count = len(golden.tensor("labels"))
        labels = even.multinomial(count, replacement=True, generator=generator).tolist()
    return ClassCondition(tuple(labels if isinstance(labels, list) else golden.tensor("labels").tolist()))


def read_settings(golden: Golden, model: VAR) -> Settings:
    """The settings of the generation."""
    schedule = model.schedule()
    return Settings(
        schedule,
        guidance=linear(1 + golden.setting("cfg"), len(schedule)),
        temperature=(1.0,) * len(schedule),
        top_k=golden.setting("top_k"),
        top_p=golden.setting("top_p"),
        smooth=relative_scales(len(schedule)) if golden.config.get("more_smooth") else (),
    )


def run_tokenizer(golden: Golden) -> Record:
    """Encodes the golden's image, quantises it scale by scale, decodes it."""
    tokenizer = build(golden, lambda: VQTokenizer(tokenizer_config(golden)), {"": "vae_state_dict"})
    apply_precision(tokenizer, Precision.of(golden.dtype), POLICY)
    schedule = ScaleSchedule.of([(side, side) for side in golden.setting("patch_nums")])
    encoded = tokenizer.encode_latent(golden.tensor("img"))
    indices, total = tokenizer.quantise(golden.resume("f", encoded), schedule)
    record = {"f": encoded, "f_hat_last": total, "rec": tokenizer.decode(golden.resume("f_hat_last", total))}
    record |= {f"idx_{scale}": index for scale, index in enumerate(indices)}
    sums = zip(schedule.grids[1:], tokenizer.sums(indices, schedule), strict=False)
    record["var_input"] = torch.cat([as_tokens(shrink(total, grid)) for grid, total in sums], dim=1)
    return record


KINDS = (
    Kind(
        "var",
        run_generation,
        inputs=r"labels",
        settings=frozenset({"patch_nums", "num_classes", "shared_aln", "cfg"}),
        early=r"hidden_0|logits_0|blockout_s0_\w+|img_f32(_crop)?",
        reduced="the first scale, and the decoder on the golden's codes",
    ),
    Kind(
        "vq tokenizer",
        run_tokenizer,
        inputs=r"img",
        settings=frozenset({"patch_nums", "Cvae", "V", "vae_ch"}),
        stores=frozenset({"img"}),
        reduced="the encoder, the quantiser on the golden's latents, and the decoder on its codes",
    ),
)
