"""Measuring what a plan of a budget rests on, once for each device and model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stepvar.core.plan import Plan
from stepvar.cost.costs import CostModel, Scope
from stepvar.cost.device import MEASUREMENTS, DeviceRates, device_key, measure_rates
from stepvar.cost.planner import Budget, fit
from stepvar.cost.profile import BLOCKS_SECONDS, ROUNDS, Profile, Subject, measure_profile
from stepvar.cost.store import kept
from stepvar.methods import make_method
from stepvar.methods.base import Method
from stepvar.models.inputs import Subject as Prompt
from stepvar.models.registry import family_of_model
from stepvar.pipeline import Pipeline
from stepvar.text import CachedEncoder
from stepvar.utils.progress import bar

CAPTION = "a red circle on sand"
GUIDANCE = 3.0


@dataclass(frozen=True)
class Calibration:
    """What was measured, and the cost model that stands on it."""

    rates: DeviceRates
    profile: Profile
    costs: CostModel


def subject_of(model: Any, plan: Plan | None = None, samples: int = 1, scope: Scope = "image") -> Subject:
    """What is to be measured of a pipeline, whose text encoder counts, or of a model alone.

    Args:
        plan: None: the model's own schedule, with the pipeline's defaults or guidance of 3.
    """
    decode = scope == "image"
    if isinstance(model, Pipeline):
        pipe, encoder = model, model.text_encoder
        drawn = Prompt(prompt=CAPTION) if encoder else pipe.conditioner.example()
        request = pipe.conditioner.request(drawn, samples)

        def encode() -> Any:
            if isinstance(encoder, CachedEncoder):
                encoder.clear()
            return request.condition()

        words = type(getattr(encoder, "encoder", encoder)).__name__ if encoder else ""
        return Subject(pipe.model, plan or pipe.plan(), samples, encode, words, decode)
    conditioner = family_of_model(model).conditioner(model, None)
    schedule = model.schedule(1.0)
    if plan is None:
        count = len(schedule)
        plan = Plan(schedule, conditioner.guidance(GUIDANCE, count), (1.0,) * count)
    encode_features = conditioner.request(conditioner.example(), samples).condition
    return Subject(model, plan, samples, encode_features, decode=decode)


def calibrate(
    model: Any,
    plan: Plan | None = None,
    samples: int = 1,
    scope: Scope = "image",
    *,
    again: bool = False,
    progress: bool = True,
) -> Calibration:
    """Measures a device and a model on it, or takes what was measured before.

    It takes some seconds for the device, and a few rounds of a dense generation, of a large model on some of its
    blocks only, for the model.

    Args:
        model: a pipeline, or a model alone.
        plan: of the dense generation; see :func:`subject_of`.
        samples: pictures drawn at once.
        scope: of the speed-up; see :class:`CostModel`. Decoding is measured for an ``"image"`` only.
        again: measure in any case.
        progress: whether to show a bar, on a terminal only.
    """
    of = subject_of(model, plan, samples, scope)
    device, dtype = of.model.device, of.model.dtype
    key = device_key(device, dtype)
    with bar("calibration", MEASUREMENTS + ROUNDS, progress) as advance:
        rates = kept(
            "device",
            key,
            lambda: measure_rates(device, dtype, advance),
            DeviceRates.to_dict,
            DeviceRates.from_dict,
            again,
        )
        costs = CostModel(of.model, of.plan, of.samples, rates, scope=scope)
        profile = kept(
            "model",
            key | model_key(of),
            lambda: measure_profile(of, probed_layers(costs), advance),
            Profile.to_dict,
            Profile.from_dict,
            again,
        )
    return Calibration(rates, profile, replace(costs, profile=profile))


def probed_layers(costs: CostModel) -> int:
    """How many blocks are measured: all, unless they would take too long."""
    depth: int = costs.model.info.depth
    share = BLOCKS_SECONDS / costs.dense_seconds
    return max(1, min(depth, int(share * depth)))


def model_key(of: Subject) -> dict[str, str]:
    """What the times of a dense generation depend on, beside the device."""
    plan, model = of.plan, of.model
    passes = [(str(step.grid), step.branches, step.computed, bool(step.top_k)) for step in plan.steps(of.samples)]
    return {
        "model": f"{type(model).__name__}: {model.config!r}",
        "precision": repr(model.precision),
        "passes": repr(passes),
        "kv_scope": plan.schedule.kv_scope,
        "plan": repr((plan.cfg_layers, bool(plan.top_p), bool(plan.smooth))),
        "samples": str(of.samples),
        "tile": str(model.tile),
        "text": of.words,
        "decode": str(of.decode),
    }


def plan_speedup(
    speedup: float,
    model: Any,
    method: Method | str = "stepvar",
    plan: Plan | None = None,
    samples: int = 1,
    scope: Scope = "image",
    *,
    progress: bool = True,
) -> Budget:
    """Settings of a method that make a generation this many times as fast as dense.

    Args:
        speedup: 1 or more.
        model: a pipeline, or a model alone (no text encoder then). It is measured on the first use.
        method: whose settings are to be found; those that the budget does not decide are kept. A composition varies
            the part that acts on tokens.
        plan: of the dense generation; see :func:`subject_of`.
        samples: pictures drawn at once.
        scope: what the speed-up is of: a whole ``"image"``, from prompt to pixels (text encoder, scales, decoding), or
            the loop over ``"scales"`` alone, as papers usually report.
        progress: whether to show a bar while measuring, on a terminal only.

    Raises:
        UsageError: for a method that spares nothing, or a speed-up that cannot be had; it names the largest.
    """
    method = make_method(method) if isinstance(method, str) else method
    return fit(speedup, method, calibrate(model, plan, samples, scope, progress=progress).costs)
