"""Looking into a generation without touching it: a model that writes down what passes through it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from stepvar.conformance.golden import Golden, Record
from stepvar.core.noise import Noise
from stepvar.core.plan import Plan, Step
from stepvar.core.stack import NO_HOOKS, Hooks, ModelInfo, RunBlocks, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.models.base import Condition_contra, NextScaleModel, Staged
from stepvar.models.blocks import GenerationState
from stepvar.models.offload import Part

State = TypeVar("State", bound=GenerationState)


class RecordingModel(Generic[Condition_contra, State]):
    """A model that notes tokens, features and logits of every pass; its subclasses note what only a family has.

    The features of a block are those before guidance, where guidance is applied after the block.

    Attributes:
        naming: how the family's goldens name what they store of a pass.
    """

    naming: ClassVar[str] = "{name}_{index}"

    def __init__(self, model: NextScaleModel[Condition_contra, State], record: Record) -> None:
        self.model, self.record = model, record

    def note(self, step: Step, name: str, values: Tensor) -> None:
        self.record[self.naming.format(name=name, index=step.index)] = values

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def stage(self, condition: Condition_contra, plan: Plan, padded: bool = False) -> Staged:
        return self.model.stage(condition, plan, padded)

    def begin(self, staged: Any, plan: Plan) -> State:
        return self.model.begin(staged, plan)

    def start(self, condition: Condition_contra | Staged, plan: Plan) -> State:
        return self.begin(condition if isinstance(condition, Staged) else self.stage(condition, plan), plan)

    def next_tokens(self, latent: Tensor, step: Step) -> Tensor:
        return self.model.next_tokens(latent, step)

    def embed(self, state: State, step: Step) -> TokenMap:
        if step.index:
            # A copy: at full size these are the accumulated latent itself, to which the loop adds in place.
            self.note(step, "tokens_in", self.next_tokens(state.latent, step).clone())
        return self.model.embed(state, step)

    def blocks(self, state: State, step: Step, hooks: Hooks = NO_HOOKS) -> RunBlocks:
        return self.model.blocks(state, step, noted_blocks(self.record, f"blockout_s{step.index}", hooks))

    def predict(self, state: State, tokens: TokenMap, step: Step) -> Tensor:
        logits = self.model.predict(state, tokens, step)
        self.note(step, "hidden", tokens.features)
        self.note(step, "logits", logits.flatten(2))
        return logits

    def sample(
        self, state: State, tokens: TokenMap, logits: Tensor, step: Step, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        return self.model.sample(state, tokens, logits, step, noise)

    def accumulate(
        self, state: State, indices: Tensor, step: Step, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        self.model.accumulate(state, indices, step, weights, mask)

    def latent(self, state: State) -> Tensor:
        return self.model.latent(state)

    def decode_latent(self, latent: Tensor) -> Tensor:
        return self.model.decode_latent(latent)

    def refine(
        self, state: State, tokens: TokenMap, indices: Tensor, step: Step, noise: Noise, mask: Tensor | None = None
    ) -> None:
        self.model.refine(state, tokens, indices, step, noise, mask)

    def on_device(self, part: Part) -> AbstractContextManager[None]:
        return self.model.on_device(part)

    def finish(self, state: State) -> None:
        """Frees nothing: what a generation leaves behind is to be looked at, too."""

    def decode(self, state: State, tile: int | None = None, sliced: bool = False) -> Tensor:
        return self.model.decode(state, tile, sliced)


def noted_blocks(record: Record, name: str, hooks: Hooks = NO_HOOKS) -> Hooks:
    """Hooks that also note what comes out of each block, as ``NAME_lLAYER``."""

    def noted(sublayer: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        update = sublayer(tokens) if hooks.sublayer is None else hooks.sublayer(sublayer, tokens, ref)
        if ref.name == "ffn":  # the last of a block
            record[f"{name}_l{ref.layer}"] = tokens.features + update
        return update

    return replace(hooks, sublayer=noted)


def image_record(
    golden: Golden,
    latent: tuple[str, Tensor],
    decode: Callable[[Tensor], Tensor],
    name: str = "img_f32",
    unit_range: bool = False,
) -> Record:
    """The accumulated latent, and its image whole and cut to what the golden stores of it.

    In low precision the golden's own latent is decoded, and no image made if the golden stores none.

    Args:
        latent: its name in the golden, and its values.
        decode: makes an image in [-1, 1] of it.
        name: of the image.
        unit_range: whether the golden's images are in [0, 1].
    """
    if not golden.exact and latent[0] not in golden.tensors:
        return dict([latent])
    pixels = decode(golden.resume(*latent))
    pixels = (pixels + 1) / 2 if unit_range else pixels
    return {latent[0]: latent[1], name: pixels} | cropped(golden, pixels)


def cropped(golden: Golden, pixels: Tensor) -> Record:
    """The upper left corner of an image, as large as the golden stores it; empty if it stores none."""
    if "img_f32_crop" not in golden.tensors:
        return {}
    stored = golden.tensors["img_f32_crop"]
    if pixels.ndim > stored.ndim:  # an image is a video of one frame
        pixels = pixels[:, :, 0]
    return {"img_f32_crop": pixels[..., : stored.shape[-2], : stored.shape[-1]]}
