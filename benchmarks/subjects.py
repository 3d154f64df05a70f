"""What the benchmarks of cost draw with: the embedded models, or released sizes with random weights."""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from stepvar.core.plan import Plan
from stepvar.core.report import Recorder, Report
from stepvar.core.noise import SeededNoise
from stepvar.cost.calibration import subject_of
from stepvar.cost.device import processor_name
from stepvar.generation import generate
from stepvar.methods import Method
from stepvar.models.family import Family
from stepvar.models.precision import Precision
from stepvar.models.registry import FAMILIES, families_of_variant, family_of_model
from stepvar.pipeline import Pipeline

VARIANTS = tuple(variant for family in FAMILIES.values() for variant in family.variants)


@dataclass(frozen=True)
class Drawing:
    """A model, what it draws and how.

    Attributes:
        whole: a pipeline or a model, as budgets take it.
        condition: of ``samples`` pictures.
        decode: whether a run ends with pixels, whose time is a stage of its own.
    """

    name: str
    whole: Any
    condition: Any
    plan: Plan
    samples: int = 1
    decode: bool = False

    @property
    def model(self) -> Any:
        return self.whole.model if isinstance(self.whole, Pipeline) else self.whole

    def run(self, method: Method) -> Report:
        """One generation."""
        recorder = Recorder(self.model.device)
        noise = SeededNoise(range(7, 7 + self.samples))
        state = generate(self.model, self.condition, self.samples, self.plan, method, noise, recorder)
        if self.decode:
            with recorder.stage("decode"):
                self.model.decode(state)
        return recorder.report(self.name, str(method), self.samples, self.model.dtype)


def random_model(family: Family, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, made on the device in their own precision. What it draws means nothing.

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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is drawn."""
    parser.add_argument("--model", default="scenes", help=f"scenes, a model folder, or one of {', '.join(VARIANTS)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--resolution", help="name of a schedule; default 1M for Infinity, else the model's own")
    parser.add_argument("--seconds", type=float, help="length of videos; default the model's own")
    parser.add_argument("--guidance", type=float, help="default: none for random weights, else the model's own")
    parser.add_argument("--samples", type=int, default=1, help="pictures drawn at once")
    parser.add_argument("--tile", type=int, help="decode by tiles of this many latent cells")
    parser.add_argument("--decode", action="store_true", help="decode the picture, too; its time is a stage of its own")


def drawing(arguments: argparse.Namespace) -> Drawing:
    """What the options say: a model that can be loaded, with its defaults, or a released size with random weights."""
    name, device, dtype = arguments.model, torch.device(arguments.device), getattr(torch, arguments.dtype)
    if name in VARIANTS:
        family = families_of_variant(name)[0]
        whole = model = random_model(family, family.variants[name].config, device, dtype)
        resolution = arguments.resolution or ("1M" if family.name == "infinity" else None)
        length = {"seconds": arguments.seconds} if family.draws_video else {}
        schedule, guidance, temperature = model.schedule(1.0, resolution, **length), 1.0, 0.5
        conditioner = family_of_model(model).conditioner(model, None)
    else:
        whole = pipe = Pipeline.from_pretrained(name).to(device, dtype)
        conditioner, model = pipe.conditioner, pipe.model
        schedule = pipe.schedule(resolution=arguments.resolution, seconds=arguments.seconds)
        guidance, temperature = pipe.defaults.get("guidance_scale", 3.0), pipe.defaults.get("temperature", 1.0)
    if arguments.tile is not None:
        model.enable_tiled_decode(arguments.tile)
    guidance, count = guidance if arguments.guidance is None else arguments.guidance, len(schedule)
    temperatures = (float(temperature),) * count
    plan = Plan(schedule, conditioner.guidance(guidance, count), temperatures)
    condition = subject_of(whole, plan, arguments.samples).encode()
    return Drawing(name, whole, condition, plan, arguments.samples, arguments.decode)


def info(of: Drawing) -> dict[str, str]:
    """The machine that a result belongs to."""
    device = of.model.device
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{processor_name()} ({platform.machine()}), {torch.get_num_threads()} threads"
    dtype = str(of.model.dtype).removeprefix("torch.")
    return {"device": device.type, "machine": machine, "torch": torch.__version__, "dtype": dtype}
