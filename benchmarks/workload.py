"""What the benchmarks of cost generate: with the embedded models, or released sizes with random weights."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from stepvar.checkpoints import LoadedModel
from stepvar.checkpoints.examples import EXAMPLES
from stepvar.core.noise import SeededNoise
from stepvar.core.plan import Settings
from stepvar.core.report import Recorder, Report
from stepvar.cost.dry_run import flop_counter
from stepvar.cost.speedup import Fitted, Scope, fit_speedup
from stepvar.methods import Method
from stepvar.models.family import Family, Variant
from stepvar.models.inputs import GenerationInputs
from stepvar.models.precision import Precision
from stepvar.models.registry import FAMILIES, releases_named
from stepvar.pipeline import Pipeline

VARIANTS = tuple(
    variant if len(releases_named(variant)) == 1 else f"{family.name}-{variant}"
    for family in FAMILIES.values()
    for variant in family.variants
)
"""Released sizes; with their family where several have one of that name."""
CAPTION = EXAMPLES["scenes"].textured[0]


@dataclass(frozen=True)
class Workload:
    """A model, what it generates and how.

    Attributes:
        condition: of ``samples`` images.
        settings: before a method edits them.
        decode: whether a run ends with pixels, whose time is a stage of its own.
    """

    pipe: Pipeline
    condition: Any
    settings: Settings
    samples: int = 1
    decode: bool = False

    @classmethod
    def of(cls, pipe: Pipeline, settings: Settings, samples: int = 1, decode: bool = False) -> Workload:
        """The embedded models' caption, or what a model without a text encoder can be measured with."""
        wanted = GenerationInputs(CAPTION) if pipe.text_encoder else pipe.inputs.example(schedule=settings.schedule)
        generators = [torch.Generator().manual_seed(index) for index in range(samples)]
        encoded = pipe.inputs.prepare(wanted, samples).encode(settings.schedule, generators)
        return cls(pipe, encoded.condition, settings, samples, decode)

    @property
    def scope(self) -> Scope:
        """What is timed: whole images where decoding runs, else the loop over scales."""
        return "image" if self.decode else "scales"

    def fit(self, speedup: float, method: Method) -> Fitted:
        """The settings of a method for a speed-up."""
        return fit_speedup(self.pipe, speedup, method, self.settings, self.samples, self.scope)

    def run(self, method: Method) -> Report:
        """One generation, by the pipeline's engine."""
        model, recorder = self.pipe.model, Recorder(self.pipe.device)
        plan = method.plan(self.settings, model.info, self.samples)
        noise = SeededNoise(range(7, 7 + self.samples))
        state = self.pipe.engine.generate(model, self.condition, plan, method, noise, recorder=recorder)
        if self.decode:
            with recorder.stage("decode"):
                model.decode(state, self.pipe.tile)
        return recorder.report(
            self.pipe.name,
            str(method),
            self.samples,
            model.dtype,
            count=flop_counter(model, self.condition, plan, method),
        )


def release(name: str) -> tuple[Family, Variant]:
    """A released size, of Infinity where an edit model is called alike."""
    family, variant = releases_named(name)[0]
    return family, family.variants[variant]


def random_model(family: Family, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, made on the device in their own precision. What it generates means nothing.

    No weight is ever held twice or in a wider format, so that the largest models fit where they will run.
    """
    with torch.device("meta"):
        model = family.build(config)
    model.set_precision(Precision.of(dtype))
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for part in (model.transformer, model.tokenizer):
            for name, tensor in part.state_dict().items():
                if tensor.ndim > 1:
                    tensor.normal_(0, prod(tensor.shape[1:]) ** -0.5, generator=generator)
                else:
                    tensor.fill_(0.0 if name.endswith("bias") else 1.0)  # factors are 1, not only those called weights
    return model.eval().requires_grad_(False)


def random_pipeline(
    family: Family, config: Any, device: torch.device, dtype: torch.dtype, name: str, **defaults: Any
) -> Pipeline:
    """A pipeline of such a model, without a text encoder; by default without guidance."""
    defaults = {"guidance_scale": 1.0, "temperature": 0.5} | defaults
    return Pipeline(LoadedModel(name, family.name, random_model(family, config, device, dtype), None, defaults), None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is generated."""
    parser.add_argument("--model", default="scenes", help=f"scenes, a model folder, or one of {', '.join(VARIANTS)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--resolution", help="name of a schedule; default 1M for Infinity, else the model's own")
    parser.add_argument("--seconds", type=float, help="length of videos; default the model's own")
    parser.add_argument("--guidance", type=float, help="default: none for random weights, else the model's own")
    parser.add_argument("--samples", type=int, default=1, help="images generated at once")
    parser.add_argument("--tile", type=int, help="decode by tiles of this many latent cells")
    parser.add_argument("--decode", action="store_true", help="decode the image, too; its time is a stage of its own")


def workload(arguments: argparse.Namespace) -> Workload:
    """What the options say: a model that can be loaded, with its defaults, or a released size with random weights."""
    name, device, dtype = arguments.model, torch.device(arguments.device), getattr(torch, arguments.dtype)
    resolution = arguments.resolution
    if releases_named(name):
        family, variant = release(name)
        pipe = random_pipeline(family, variant.config, device, dtype, name)
        resolution = resolution or ("1M" if family.name == "infinity" else None)
    else:
        pipe = Pipeline.from_pretrained(name, device=device, dtype=dtype)
    if arguments.tile is not None:
        pipe.enable_vae_tiling(arguments.tile)
    settings = pipe.settings(resolution=resolution, seconds=arguments.seconds, guidance_scale=arguments.guidance)
    return Workload.of(pipe, settings, arguments.samples, arguments.decode)
