"""Words of other libraries for what a pipeline does: served where they mean something here, answered where they do not.

Most are those of diffusers. Each table belongs to one function of :class:`~stepvar.Pipeline`; :func:`accepts` gives a
function its table, so that a word is never a bare ``TypeError``. The page "Coming from diffusers" shows the tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from stepvar.core.values import nearest, shown
from stepvar.errors import UnknownArgument, UnknownAttribute, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])
Serve = Callable[[str, Any], Mapping[str, Any]]
"""From a word and its value to arguments of the function itself; raises a UsageError for a value without meaning."""


@dataclass(frozen=True)
class Words:
    """The words of other libraries for the arguments of one function.

    Attributes:
        served: words that mean something here.
        answers: for the others, what to do instead.
    """

    served: Mapping[str, Serve] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)

    def translated(self, given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Arguments by the names of the function itself.

        Args:
            known: its own names.
            where: its name, for errors.

        Raises:
            UsageError: for a word that cannot be served, an unknown one, or two for the same argument.
        """
        own = {name: value for name, value in given.items() if name in known}
        for name, value in given.items():
            if name in known:
                continue
            if name not in self.served:
                raise UnknownArgument(f"{name}: {self.answer(name, known, where)}")
            for other, converted in self.served[name](name, value).items():
                if own.get(other) is not None:
                    raise UsageError(f"{name} and {other}: mean the same; give one of them")
                own[other] = converted
        return own

    def answer(self, name: str, known: Mapping[str, Any], where: str) -> str:
        if name in self.answers:
            return self.answers[name]
        near = nearest(name, [*known, *self.served])
        return f"not an argument of {where}" + (near or f"; it takes {', '.join(known)}")


def accepts(words: Words, more: Callable[[], Mapping[str, Any]] = dict) -> Callable[[Function], Function]:
    """Decorator that lets a function take the words of a table.

    Args:
        more: gives names that it takes beside those of its signature.
    """

    def decorate(function: Function) -> Function:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        signature = inspect.signature(function).parameters.values()
        own = {one.name: None for one in signature if one.kind not in kinds and one.name not in ("self", "cls")}

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys() <= own.keys():
                kwargs = words.translated(kwargs, {**own, **more()}, f"{function.__name__}()")
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def renamed(name: str) -> Serve:
    """Serves a word that is another name of an argument."""
    return lambda word, value: {name: value}


def only(accepted: Any, instead: str) -> Serve:
    """Serves a word whose one value says what happens anyway."""

    def serve(word: str, value: Any) -> Mapping[str, Any]:
        if value is not accepted and value is not None:
            raise UsageError(f"{word}={shown(value)}: {instead}")
        return {}

    return serve


def _device_map(word: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, str) or value in ("balanced", "balanced_low_0", "sequential"):
        raise UsageError(f"{word}={shown(value)}: a model runs on one device here; give device='cuda' or 'auto'")
    return {"device": value}


SCHEDULED = "a generation runs one pass per scale of its schedule; leave it out, or use method='skip-last' to run fewer"
NO_LATENTS = "what a generation starts from is no noise; random numbers come from seed=, generator= or noise="
NO_ADAPTERS = "adapters are not supported; merge them into the weights, then load those"
FUSED = "attention runs in PyTorch's fused kernels already; leave it out"
OWN_RATE = "the rate is the model's; write a video at another one with Video(out.videos[0].frames, fps).save(path)"

CALL = Words(
    served={
        "num_images": renamed("num_images_per_prompt"),
        "num_videos_per_prompt": renamed("num_images_per_prompt"),
        "return_dict": only(True, "the result is an Output; take .images or .videos of it"),
        "use_resolution_binning": only(True, "only shapes of published schedules can be generated"),
    },
    answers={
        "num_inference_steps": SCHEDULED,
        "steps": SCHEDULED,
        "timesteps": SCHEDULED,
        "sigmas": SCHEDULED,
        "denoising_end": SCHEDULED,
        "denoising_start": SCHEDULED,
        "eta": "there is no diffusion scheduler; temperature, top_k and top_p say how codes are sampled",
        "guidance_rescale": "guidance_type='apg' keeps guidance from saturating",
        "true_cfg_scale": "it is guidance_scale here",
        "cfg_scale": "it is guidance_scale here; 1 is off (VAR's own cfg is guidance_scale - 1)",
        "cfg": "it is guidance_scale here; 1 is off (VAR's own cfg is guidance_scale - 1)",
        "cfg_list": "it is guidance_scale here; it takes one number per scale, too",
        "cfg_insertion_layer": "it is cfg_layers here",
        "tau": "it is temperature here",
        "tau_list": "it is temperature here; it takes one number per scale, too",
        "g_seed": "it is seed here",
        "strength": "models that edit take image= and an instruction; video models begin a video with image=",
        "mask_image": "no model here takes a mask; models that edit take image= and an instruction",
        "control_image": "no model here takes a control image",
        "ip_adapter_image": NO_ADAPTERS,
        "ip_adapter_image_embeds": NO_ADAPTERS,
        "latents": NO_LATENTS,
        "noise_aug_strength": NO_LATENTS,
        "callback_on_step_end": "give callback_on_scale_end=f; it calls f(step, state) after each scale",
        "callback_on_step_end_tensor_inputs": "give callback_on_scale_end=f; it calls f(step, state) after each scale",
        "callback": "give callback_on_scale_end=f; it calls f(step, state) after each scale",
        "callback_steps": "callback_on_scale_end is called after each scale; use step.index to leave some out",
        "cross_attention_kwargs": FUSED,
        "attention_kwargs": FUSED,
        "joint_attention_kwargs": FUSED,
        "clip_skip": "the text encoder is read at its last layer, as the model was trained",
        "max_sequence_length": "the longest text is that of the model's text encoder; give prompt_embeds for another",
        "prompt_2": "models here read one text; give it as prompt",
        "negative_prompt_2": "models here read one text; give it as negative_prompt",
        "pooled_prompt_embeds": "give prompt_embeds; Switti takes PooledFeatures there, other models pool them",
        "negative_pooled_prompt_embeds": "give negative_prompt_embeds; Switti takes PooledFeatures there",
        "prompt_attention_mask": "leave padding out of prompt_embeds; HART takes ContextFeatures with a mask",
        "fps": OWN_RATE,
        "frame_rate": OWN_RATE,
        "decode_chunk_size": "use pipe.enable_vae_tiling() to decode in bounded memory",
        "clean_caption": "prompts are read as they are; clean them before",
        "original_size": "give height and width, or aspect_ratio and resolution",
        "target_size": "give height and width, or aspect_ratio and resolution",
        "keep": "settings belong to a method: method=StepVAR(keep=0.5)",
        "last": "settings belong to a method: method=StepVAR(last=2)",
    },
)

OWN_FILES = "weights are read from safetensors, or from PyTorch files without unpickling, whichever is there"

LOAD = Words(
    served={
        "torch_dtype": renamed("dtype"),
        "use_auth_token": renamed("token"),
        "pretrained_model_name_or_path": renamed("name"),
        "device_map": _device_map,
        "use_safetensors": only(True, OWN_FILES),
        "low_cpu_mem_usage": only(True, "no more than one tensor is in memory twice, always; leave it out"),
        "safety_checker": only(None, "there is none; leave it out"),
        "requires_safety_checker": only(False, "there is none; leave it out"),
        "trust_remote_code": only(False, "code from a repository is never run; leave it out"),
        "force_download": only(False, "delete the folder from the cache of huggingface_hub to fetch it again"),
    },
    answers={
        "scheduler": "there is no diffusion scheduler; a call's method= and schedule say which passes run",
        "vae": "give tokenizer=, the path of the tokenizer's file",
        "unet": "give name=, the path of the transformer's file",
        "transformer": "give name=, the path of the transformer's file",
        "feature_extractor": "there is none; leave it out",
        "image_encoder": "there is none; leave it out",
        "custom_pipeline": "code from a repository is never run; leave it out",
        "subfolder": "give name=, the path of the folder itself",
        "weight_name": "give name=, the path of the file itself",
        "proxies": "set HTTPS_PROXY in the environment",
        "max_memory": "a model runs on one device here; give device='cuda' or 'auto'",
        "offload_folder": "weights are not kept on disk; see the page 'Precision and memory'",
        "offload_state_dict": "weights are not kept on disk; see the page 'Precision and memory'",
        "attn_implementation": FUSED,
    },
)

NO_WORDS = Words()

ATTRIBUTES: Mapping[str, str] = {
    "enable_xformers_memory_efficient_attention": FUSED,
    "disable_xformers_memory_efficient_attention": FUSED,
    "enable_attention_slicing": FUSED,
    "disable_attention_slicing": FUSED,
    "enable_flash_attention": FUSED,
    "enable_group_offload": "use pipe.enable_sequential_cpu_offload()",
    "fuse_qkv_projections": "attention projects queries, keys and values as released; leave it out",
    "enable_freeu": "it is of diffusion models; leave it out",
    "disable_freeu": "it is of diffusion models; leave it out",
    "upcast_vae": "use pipe.model.set_precision(Precision(blocks=..., tokenizer=torch.float32))",
    "load_lora_weights": NO_ADAPTERS,
    "unload_lora_weights": NO_ADAPTERS,
    "fuse_lora": NO_ADAPTERS,
    "set_adapters": NO_ADAPTERS,
    "load_ip_adapter": NO_ADAPTERS,
    "load_textual_inversion": NO_ADAPTERS,
    "from_pipe": "make another one with Pipeline.from_pretrained(...)",
    "encode_prompt": "use pipe.text_encoder.encode([prompt])",
    "scheduler": "there is no diffusion scheduler; a call's method= and schedule say which passes run",
    "unet": "it is pipe.model.transformer",
    "transformer": "it is pipe.model.transformer",
    "vae": "it is pipe.model.tokenizer",
    "tokenizer": "images are coded by pipe.model.tokenizer; prompts are read by pipe.text_encoder",
    "components": "they are pipe.model and pipe.text_encoder",
    "config": "it is pipe.model.config",
    "maybe_free_model_hooks": "there are no hooks; leave it out",
    "remove_all_hooks": "there are no hooks; leave it out",
    "cuda": "use pipe.to('cuda')",
    "cpu": "use pipe.to('cpu')",
    "half": "use pipe.to(torch.float16)",
    "float": "use pipe.to(torch.float32)",
    "bfloat16": "use pipe.to(torch.bfloat16)",
    "double": "models run in float32, bfloat16 or float16: pipe.to(torch.float32)",
    "eval": "a pipeline only generates; leave it out",
    "train": "a pipeline only generates; the folder training/ has recipes",
    "compile": "use Pipeline.from_pretrained(..., engine='graphs') on a GPU",
    "images": "call the pipeline; its result has them: pipe(prompt).images",
    "push_to_hub": "use pipe.save_pretrained(folder), then 'hf upload'",
}
"""Methods and attributes of other libraries' pipelines, and what to use instead."""


def unknown_attribute(owner: object, name: str) -> UnknownAttribute:
    """The error for an attribute that a pipeline does not have."""
    kind = type(owner).__name__
    known = [one for one in (*dir(type(owner)), *vars(owner)) if not one.startswith("_")]
    instead = ATTRIBUTES.get(name)
    return UnknownAttribute(f"{kind}.{name}: " + (instead or f"there is no such attribute{nearest(name, known)}"))
