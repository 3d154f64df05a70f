"""Load a model, say what to draw, choose a method, sample, decode.

Nodes keep no state: a model, a text, a method and latents are values that pass from node to node, and ComfyUI keeps
those whose inputs did not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from stepvar import Pipeline
from stepvar.checkpoints import EMBEDDED
from stepvar.checkpoints.sources import find_outline
from stepvar.cli.options import parse_method
from stepvar.core.arguments import SEED
from stepvar.core.plan import Step
from stepvar.core.values import shown
from stepvar.errors import StepvarError, UsageError
from stepvar.kernels.linear import QUANTIZATIONS
from stepvar.methods import Compose, Method
from stepvar.methods.registry import AUTO, all_methods
from stepvar.models.registry import FAMILIES
from stepvar.output import Latents

CATEGORY = "stepvar"
FOLDER = "stepvar"
"""Under ComfyUI's folder of models: checkpoint files, and folders that ``save_pretrained`` or ``convert`` wrote."""
PREVIEW_SIDE = 512
OFFLOADS = ("none", "model", "sequential")

Model = io.Custom("STEPVAR_MODEL")
Text = io.Custom("STEPVAR_TEXT")
Acceleration = io.Custom("STEPVAR_METHOD")
Latent = io.Custom("STEPVAR_LATENT")

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


@dataclass(frozen=True)
class Words:
    """What to draw: a prompt, or the class of a class-conditional model; what guidance leads away from, if anything."""

    text: str
    negative: str


@dataclass(frozen=True)
class Chosen:
    """A method with its settings, or its name where a speed-up is to find them."""

    method: Method | str
    speedup: float | None = None


def models() -> dict[str, tuple[str, str | None]]:
    """Name and variant of every model that can be chosen, by its label: embedded, in the folder, on the hub."""
    found: dict[str, tuple[str, str | None]] = {name: (name, None) for name in EMBEDDED}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            if _is_model(path):
                found[path.name] = (str(path), None)
    for family in FAMILIES.values():
        for name, variant in family.variants.items():
            if variant.transformer:  # else its file is not known
                found[f"{family.repos[0]} {name}"] = (family.repos[0], name)
    return found


def _is_model(path: Path) -> bool:
    try:
        find_outline(path)
    except StepvarError:  # another file, such as a tokenizer's
        return False
    return True


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StepVARLoadModel",
            display_name="Load VAR Model",
            category=CATEGORY,
            description="Loads a visual autoregressive (next-scale) model with its tokenizer and text encoder.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(models()),
                    default=EMBEDDED[0],
                    tooltip=f"Embedded, from models/{FOLDER}, or a release on the hub, which is downloaded.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "float32", "bfloat16", "float16"],
                    default="auto",
                    tooltip="auto: bfloat16 on a CUDA GPU, else float32.",
                ),
                io.Combo.Input("quantization", options=["none", *QUANTIZATIONS], default="none", optional=True),
                io.Combo.Input(
                    "offload",
                    options=list(OFFLOADS),
                    default="none",
                    optional=True,
                    tooltip="Weights rest on the CPU; sequential takes the least memory of the GPU, and is slowest.",
                ),
                io.Combo.Input("device", options=["auto", "cpu"], default="auto", optional=True),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls, model: str, precision: str, quantization: str = "none", offload: str = "none", device: str = "auto"
    ) -> io.NodeOutput:
        known = models()
        if model not in known:  # not every ComfyUI holds values to the list, and a workflow may name any file
            raise UsageError(f"model {shown(model)}: choose one of the list, or put it into models/{FOLDER}")
        for option, value, choices in (
            ("quantization", quantization, ("none", *QUANTIZATIONS)),
            ("offload", offload, OFFLOADS),
        ):
            if value not in choices:
                raise UsageError(f"{option} {shown(value)}: choose one of {', '.join(choices)}")
        name, variant = known[model]
        place = torch.device("cpu") if device == "cpu" else comfy.model_management.get_torch_device()
        if place.type != "cpu":  # ComfyUI moves its own models back when it needs them
            comfy.model_management.unload_all_models()
        pipe = Pipeline.from_pretrained(
            name,
            variant,
            device=place if offload == "none" else "cpu",
            dtype=("bfloat16" if place.type == "cuda" else "float32") if precision == "auto" else precision,
            quantization=None if quantization == "none" else next(one for one in QUANTIZATIONS if one == quantization),
        )
        pipe.progress = False
        if offload == "model":
            pipe.enable_model_cpu_offload(place)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(place)
        return io.NodeOutput(pipe)


class SetText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StepVARText",
            display_name="VAR Text",
            category=CATEGORY,
            description="What to draw. For class-conditional models the name or the number of a class.",
            inputs=[
                io.String.Input("text", multiline=True, dynamic_prompts=True, default="a red circle on grass"),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What guidance leads away from, for models that were trained with it. Empty: nothing.",
                ),
            ],
            outputs=[Text.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, text: str, negative: str = "") -> io.NodeOutput:
        return io.NodeOutput(Words(text.strip(), negative.strip()))


class ChooseMethod(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StepVARMethod",
            display_name="VAR Acceleration Method",
            category=CATEGORY,
            description="Computes fewer tokens, or runs less guidance. Without one, sampling is dense.",
            inputs=[
                io.Combo.Input("method", options=[*all_methods(), AUTO], default="stepvar"),
                io.String.Input(
                    "settings",
                    default="",
                    tooltip="Such as: keep=0.5 last=2; 'stepvar methods NAME' lists them. Empty: as published.",
                ),
                io.Float.Input(
                    "speedup",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    tooltip="How many times as fast as dense: finds settings by measuring once. 0: as given.",
                ),
                Acceleration.Input("together_with", optional=True, tooltip="Another method that acts as well."),
            ],
            outputs=[Acceleration.Output(display_name="method")],
        )

    @classmethod
    def execute(cls, method: str, settings: str, speedup: float, together_with: Chosen | None = None) -> io.NodeOutput:
        if method != AUTO and method not in all_methods():  # not the path of a class, whose module would be run
            raise UsageError(f"method {shown(method)}: choose one of the list")
        if AUTO in (method, together_with and together_with.method):
            if together_with is not None:
                raise UsageError("auto: acts alone; take the other method away")
            if settings.strip():
                raise UsageError(f"settings {shown(settings)}: auto finds its own; leave them out, or choose a method")
            return io.NodeOutput(Chosen(AUTO, speedup or None))
        chosen = parse_method(method, {}, settings.split())
        if together_with is not None and isinstance(together_with.method, Method):
            chosen = Compose(together_with.method, chosen)
            speedup = speedup or together_with.speedup or 0.0
        return io.NodeOutput(Chosen(chosen, speedup or None))


class Sample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StepVARSampler",
            display_name="VAR Sampler",
            category=CATEGORY,
            description="Generates scale by scale, and shows the picture so far after each.",
            inputs=[
                Model.Input("model"),
                Text.Input("text"),
                io.Int.Input("seed", default=0, min=0, max=int(SEED.most or 0), control_after_generate=True),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Image i has the seed SEED + i."),
                io.Float.Input(
                    "guidance_scale", default=0.0, min=0.0, max=100.0, step=0.1, tooltip="1 is off; 0: the model's own."
                ),
                io.String.Input("aspect_ratio", default="", tooltip="Such as 3:2. Empty: the model's own."),
                io.String.Input("resolution", default="", tooltip="Such as 0.25M. Empty: the model's own."),
                io.Float.Input(
                    "seconds",
                    default=-1.0,
                    min=-1.0,
                    max=3600.0,
                    step=0.1,
                    tooltip="Video models: the length; 0: a still image; -1: the model's own.",
                ),
                io.Boolean.Input("preview", default=True, tooltip="Decodes after each scale; off is a little faster."),
                Acceleration.Input("method", optional=True),
                io.Image.Input("image", optional=True, tooltip="What a model edits, or what a video begins with."),
            ],
            outputs=[Latent.Output(display_name="latent"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls,
        model: Pipeline,
        text: Words,
        seed: int,
        batch_size: int,
        guidance_scale: float,
        aspect_ratio: str,
        resolution: str,
        seconds: float,
        preview: bool,
        method: Chosen | None = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        given: dict[str, Any] = {
            model.inputs.argument: text.text,
            "negative_prompt": text.negative or None,
            "guidance_scale": guidance_scale or None,
            "aspect_ratio": aspect_ratio.strip() or None,
            "resolution": resolution.strip() or None,
            "seconds": None if seconds < 0 else seconds,
            "image": None if image is None else _as_pil(image),
        }
        if method is not None:
            given |= {"method": method.method, "speedup": method.speedup}
        output = model(
            **given,
            seed=seed,
            num_images_per_prompt=batch_size,
            output_type="latent",
            callback_on_scale_end=_progress(
                model, preview, [given["image"]] * batch_size if image is not None and model.family.edits else []
            ),
        )
        return io.NodeOutput(output.latents, str(output.report))


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StepVARDecode",
            display_name="VAR Decode",
            category=CATEGORY,
            description="From latents to images, or to the frames of videos; Create Video takes both outputs.",
            inputs=[
                Model.Input("model"),
                Latent.Input("latent"),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    tooltip="Side of the tiles in latent cells, for large images in bounded memory; 0: in one piece.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images"), io.Float.Output(display_name="fps")],
        )

    @classmethod
    def execute(cls, model: Pipeline, latent: Latents, tile: int = 0) -> io.NodeOutput:
        before = model.tile
        try:
            if tile:
                model.enable_vae_tiling(tile)
            media = model.decode(latent, "np")
        finally:
            model.tile = before
        frames = media.reshape(-1, *media.shape[-3:])  # of several videos one after the other
        # Levels of 8 bits, which are saved as they are: ComfyUI does not round.
        return io.NodeOutput(torch.from_numpy(frames).float() / 255, float(latent.fps))


def _progress(pipe: Pipeline, preview: bool, sources: list[Image.Image]) -> Any:
    """The callback that moves the bar, shows the image so far, and ends the generation if it was cancelled.

    Args:
        sources: the images that are edited.
    """
    bar = comfy.utils.ProgressBar(1)

    def on_scale_end(step: Step, state: Any) -> None:
        picture = None
        if preview and not step.is_last:
            picture = ("JPEG", _first(pipe.preview(state, sources=sources)), PREVIEW_SIDE)
        bar.update_absolute(step.index + 1, len(step.settings.schedule), picture)  # raises where it was cancelled

    return on_scale_end


def _first(media: Any) -> Image.Image:
    """The first image, or the last frame of the first video: what was just generated."""
    one = media[0]
    return one if isinstance(one, Image.Image) else one.images()[-1]


def _as_pil(images: Tensor) -> Image.Image:
    """The first of ComfyUI's images (B, H, W, 3 or 4) in [0, 1].

    Raises:
        UsageError: if there is none, or it has other channels, as masks do.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (3, 4):
        raise UsageError(
            f"image of shape {tuple(images.shape)}: must be (B, H, W, 3); masks become one by Mask to Image"
        )
    levels = (images[0, ..., :3] * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.cpu().numpy().astype(np.uint8))


NODES: list[type[io.ComfyNode]] = [LoadModel, SetText, ChooseMethod, Sample, Decode]
