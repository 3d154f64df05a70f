"""A pipeline of ours as a ``DiffusionPipeline`` of diffusers, for tools that expect one.

It is thin: :class:`StepVARPipeline` holds a :class:`~stepvar.Pipeline`, takes the words of diffusers, and returns what
diffusers' pipelines return. The page "Coming from diffusers" says which of them have no meaning here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.checkpoints import EMBEDDED
from stepvar.checkpoints.hub import WHOLE, fetch
from stepvar.core.plan import Step
from stepvar.core.values import shown
from stepvar.core.words import ATTRIBUTES, unknown_attribute
from stepvar.errors import UsageError
from stepvar.models.registry import release_of_repo
from stepvar.output import OutputType
from stepvar.pipeline import Pipeline
from stepvar.utils.hub import hub_access
from stepvar.utils.require import require

require("diffusers", "diffusers", "StepVARPipeline")
from diffusers import DiffusionPipeline, ImagePipelineOutput  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A name on the hub; what begins with a dot or a tilde is a path."""

StepCallback = Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | None]
"""As diffusers calls it: pipeline, index of the scale, the same as its "timestep", tensors by name."""


@dataclass
class VideoPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Videos, as diffusers' video pipelines return them.

    Attributes:
        frames: ``"pil"``: a list of PIL images per video; ``"np"``: (B, F, H, W, 3), ``"pt"``: (B, F, 3, H, W), both
            float32 in [0, 1]; ``"latent"``: (B, d, T, H, W).
    """

    frames: Any


class _Interrupted(Exception):
    """A callback set ``pipe._interrupt``: carries the images or videos so far."""

    def __init__(self, media: Any) -> None:
        super().__init__()
        self.media = media


def _refused(name: str) -> Any:
    """In place of a method of diffusers that would do nothing here without saying so."""

    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        raise UsageError(f"{name}: {ATTRIBUTES[name]}")

    method.__name__, method.__doc__ = name, f"Refused: {ATTRIBUTES[name]}."
    return method


class StepVARPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A model with the interface of diffusers' pipelines; images are to the bit those of :class:`~stepvar.Pipeline`.

    Args:
        pipeline: what does the work. It stays reachable as :attr:`pipeline`, with all that diffusers has no word for.
    """

    pipeline: Pipeline
    _callback_tensor_inputs = ("latents",)

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.register_to_config(pipeline=("stepvar", "Pipeline"))
        self.pipeline = pipeline
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> StepVARPipeline:
        """Loads whatever :meth:`Pipeline.from_pretrained` does, and what :meth:`push_to_hub` wrote.

        Args:
            pretrained_model_name_or_path: an embedded model, a folder of :meth:`save_pretrained` (of either class), a
                release on the hub, or a repository of such a folder.
            kwargs: of :meth:`Pipeline.from_pretrained`; words of diffusers such as ``torch_dtype`` are among them.

        Raises:
            UsageError, CheckpointError: as there.
        """
        name = str(pretrained_model_name_or_path)
        elsewhere = _REPOSITORY.fullmatch(name) is None or name in EMBEDDED or Path(name).exists()
        if elsewhere or release_of_repo(name) is not None:
            return cls(Pipeline.from_pretrained(name, **kwargs))
        access = {key: kwargs[key] for key in ("cache_dir", "token", "local_files_only") if key in kwargs}
        with hub_access(**access):
            folder = fetch([name], [WHOLE], kwargs.pop("revision", None), False)
        return cls(Pipeline.from_pretrained(folder, **kwargs))

    from_single_file = from_pretrained

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes a folder that this class and :class:`~stepvar.Pipeline` read; always safetensors.

        Args:
            save_directory: it must not exist, or be empty.
            push_to_hub: whether to upload it, too; ``kwargs`` are then those of :meth:`push_to_hub`.

        Raises:
            UsageError: for ``safe_serialization=False`` or a variant.
            OutputError: if the folder holds files or cannot be written.
        """
        if not safe_serialization:
            raise UsageError("safe_serialization=False: weights are written as safetensors only; leave it out")
        if variant is not None:
            raise UsageError(
                f"variant={variant!r}: a folder holds one model; bring it to a precision with to(), then save"
            )
        folder = Path(save_directory)
        with suppress(OSError):  # an empty one is in the way of one that is written whole or not at all
            folder.rmdir()
        self.pipeline.save_pretrained(folder)
        self.save_config(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> Any:
        """Generates images or videos.

        Args:
            num_inference_steps: has no meaning: the schedule of the model says how many scales run. A warning says so.
            output_type: ``"pil"``; ``"np"``: (B, H, W, 3), ``"pt"``: (B, 3, H, W), both float32 in [0, 1]; or
                ``"latent"``: the accumulated latent.
            return_dict: whether to return an object; else a tuple with the images or videos.
            callback_on_step_end: called after each scale as ``callback(pipe, step, timestep, {"latents": latent})``,
                where both numbers are the index of the scale. It may stop the generation with
                ``pipe._interrupt = True``, and must leave the latent as it is.
            kwargs: of :meth:`Pipeline.__call__`: ``method``, ``seed``, ``guidance_scale``, ``generator``, ``height``,
                ``num_images_per_prompt`` ... None stands for leaving one out.

        Returns:
            diffusers' ``ImagePipelineOutput``, or a :class:`VideoPipelineOutput`.

        Raises:
            UsageError: for what has no meaning here, with what to do instead.
        """
        if num_inference_steps is not None:
            said = f"num_inference_steps={num_inference_steps}: has no meaning, the model's schedule says what runs"
            warnings.warn(said, stacklevel=2)
        given = {name: value for name, value in kwargs.items() if value is not None}
        form: OutputType = "pt" if output_type == "np" else output_type
        if callback_on_step_end is not None:
            if "callback_on_scale_end" in given:
                raise UsageError("callback_on_step_end and callback_on_scale_end: both run after each scale; give one")
            names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
            given["callback_on_scale_end"] = self._callback(callback_on_step_end, names, form)
        self._interrupt = False
        try:
            output = self.pipeline(prompt, negative_prompt, output_type=form, **given)
        except _Interrupted as stopped:
            media = stopped.media
        else:
            latents = output.latents
            media = output[0] if latents is None else latents.state.latent
        # A video of PyTorch has five dimensions; a list of PIL images holds videos with frames.
        video = media.ndim == 5 if isinstance(media, Tensor) else hasattr(media[0], "frames")
        if form != "latent":
            media = _as_diffusers(media, output_type, video)
        if not return_dict:
            return (media,)
        return VideoPipelineOutput(media) if video else ImagePipelineOutput(media)

    def _callback(self, callback: StepCallback, names: Sequence[str], form: OutputType) -> Callable[[Step, Any], None]:
        if not callable(callback):
            raise UsageError(
                f"callback_on_step_end={shown(callback)}: give a function of the pipeline, two numbers and the tensors"
            )
        names = [names] if isinstance(names, str) else names or ()
        if wrong := [name for name in names if name not in self._callback_tensor_inputs]:
            raise UsageError(f"callback_on_step_end_tensor_inputs: {', '.join(map(str, wrong))}: there is latents only")

        def on_scale_end(step: Step, state: Any) -> None:
            latent = self.pipeline.model.latent(state)
            changed = callback(self, step.index, step.index, {"latents": latent} if names else {})
            if isinstance(changed, dict) and changed.get("latents", latent) is not latent:
                raise UsageError(
                    "callback_on_step_end: latents were changed, and later scales do not read them; return them"
                )
            if self._interrupt:
                raise _Interrupted(latent.clone() if form == "latent" else self.pipeline.preview(state, form))

        return on_scale_end

    def to(self, *args: Any, **kwargs: Any) -> StepVARPipeline:
        """Moves the model in place, as :meth:`Pipeline.to` does."""
        kwargs.pop("silence_dtype_warnings", None)
        self.pipeline.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.dtype

    @property
    def transformer(self) -> nn.Module:
        transformer: nn.Module = self.pipeline.model.transformer
        return transformer

    @property
    def vae(self) -> nn.Module:
        """The visual tokenizer."""
        tokenizer: nn.Module = self.pipeline.model.tokenizer
        return tokenizer

    @property
    def text_encoder(self) -> Any:
        return self.pipeline.text_encoder

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Switches the bar on or off with ``disable``; its look cannot be set, and is left as it is."""
        super().set_progress_bar_config(**kwargs)
        self.pipeline.progress = not kwargs.get("disable", False)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As :meth:`Pipeline.enable_model_cpu_offload`; ``accelerate`` is not needed."""
        self.pipeline.enable_model_cpu_offload(_place(gpu_id, device))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As :meth:`Pipeline.enable_sequential_cpu_offload`; ``accelerate`` is not needed."""
        self.pipeline.enable_sequential_cpu_offload(_place(gpu_id, device))

    def enable_vae_tiling(self) -> None:
        self.pipeline.enable_vae_tiling()

    def disable_vae_tiling(self) -> None:
        self.pipeline.disable_vae_tiling()

    def enable_vae_slicing(self) -> None:
        self.pipeline.enable_vae_slicing()

    def disable_vae_slicing(self) -> None:
        self.pipeline.disable_vae_slicing()

    def disable_attention_slicing(self) -> None:
        """Nothing: it is never on."""

    enable_group_offload = _refused("enable_group_offload")
    enable_attention_slicing = _refused("enable_attention_slicing")
    enable_xformers_memory_efficient_attention = _refused("enable_xformers_memory_efficient_attention")
    enable_freeu = _refused("enable_freeu")
    fuse_qkv_projections = _refused("fuse_qkv_projections")

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            raise unknown_attribute(self, name)
        return super().__getattr__(name)

    def __repr__(self) -> str:
        return f"StepVARPipeline({self.pipeline!r})"


def _place(gpu_id: int | None, device: torch.device | str | None) -> torch.device | str | None:
    return f"cuda:{gpu_id}" if device is None and gpu_id is not None else device


def _as_diffusers(media: Any, output_type: str, video: bool) -> Any:
    """Images, or frames of videos, in the layout of diffusers."""
    if output_type == "pil":
        return [one.images() for one in media] if video else media
    pixels: Tensor = media.transpose(1, 2) if video else media  # (B, F, 3, H, W), or (B, 3, H, W)
    return pixels.movedim(-3, -1).float().cpu().numpy() if output_type == "np" else pixels
