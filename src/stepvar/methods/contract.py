"""What a method gives back is checked, and errors of a method's own code say whose they are."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepvar.core.plan import Plan, Step
from stepvar.core.stack import Attention, AttentionInputs, Hooks, PassResult, Sublayer, SublayerRef
from stepvar.core.tokens import TokenMap
from stepvar.core.values import shown
from stepvar.errors import MethodError, StepvarError, UsageError
from stepvar.methods.base import Method, MethodState
from stepvar.methods.compose import Compose

PACKAGE = __name__.partition(".")[0]


@contextmanager
def blaming(method: Method) -> Iterator[None]:
    """Within it an error that passes through the code of a method from outside the package names that code.

    Raises:
        MethodError: from the error itself, whose traceback it keeps.
    """
    try:
        yield
    except (StepvarError, MemoryError):
        raise
    except Exception as error:
        place = None if type(error).__name__ == "OutOfMemoryError" else _place_in(method, error)
        if place is None:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        where = f"{Path(place.filename).name}:{place.lineno}, in {place.name}"
        raise MethodError(f"method {str(method)!r} failed ({where}): {said}") from error


def _place_in(method: Method, error: Exception) -> traceback.FrameSummary | None:
    """The deepest line of the method's own files that an error came through."""
    parts = method.parts if isinstance(method, Compose) else (method,)
    classes = [base for part in parts for base in type(part).__mro__ if not base.__module__.startswith(f"{PACKAGE}.")]
    functions = [function for base in classes for function in vars(base).values() if hasattr(function, "__code__")]
    files = {function.__code__.co_filename for function in functions}
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame for frame in reversed(frames) if frame.filename in files), None)


def checked_state(state: Any, method: Method) -> MethodState:
    """What ``start`` gave.

    Raises:
        UsageError: if it is no state.
    """
    if not isinstance(state, MethodState):
        raise UsageError(f"method {str(method)!r}: start() gave a {type(state).__name__}; give a MethodState")
    return state


def checked_map(tokens: Any, entered: TokenMap, method: Method, step: Step, name: str = "run_stack") -> TokenMap:
    """What ``run_stack``, or another that is named, gave for a map.

    Raises:
        UsageError: if it is not a dense map of the same shape.
    """
    shape, place = tuple(entered.features.shape), f"at pass {step.index} ({step.grid})"
    if not isinstance(tokens, TokenMap):
        kind = type(tokens).__name__
        raise UsageError(f"method {str(method)!r}: {name}() gave a {kind} {place}; give a TokenMap {shape}")
    if tuple(tokens.features.shape) != shape:
        given = tuple(tokens.features.shape)
        raise UsageError(f"method {str(method)!r}: {name}() gave features {given} {place}; give all tokens, {shape}")
    return tokens


def hooks_of(method: Method, step: Step, state: MethodState) -> Hooks:
    """What a method does inside the blocks of a pass, each answer of it checked."""

    def sublayer(run: Sublayer, tokens: TokenMap, ref: SublayerRef) -> Tensor:
        return checked_update(method.run_sublayer(run, tokens, ref, step, state), tokens, method, step)

    def attention(attend: Attention, inputs: AttentionInputs, ref: SublayerRef) -> Tensor:
        attended = method.run_attention(attend, inputs, ref, step, state)
        return _checked(attended, tuple(inputs.queries.shape), "run_attention", method, step)

    def cache(inputs: AttentionInputs, count: int, ref: SublayerRef) -> Tensor:
        index = method.select_cached(inputs, count, ref, step, state)
        return _checked(index, (*inputs.keys.shape[:2], count), "select_cached", method, step)

    return Hooks(
        sublayer if method.acts_on_sublayers(step) else None,
        attention if method.acts_on_attention else None,
        cache if method.acts_on_cache else None,
    )


def checked_mask(mask: Any, indices: Tensor, method: Method, step: Step) -> Tensor | None:
    """What ``code_mask`` gave.

    Raises:
        UsageError: if it is not one bool for each token, or None.
    """
    return None if mask is None else _checked(mask, tuple(indices.shape[:2]), "code_mask", method, step)


def chosen_plan(plan: Plan, name: Any, method: Method) -> Plan:
    """The plan that ``decide`` chose by its name, behind the passes that have run.

    Raises:
        UsageError: if there is none.
    """
    assert plan.decision is not None
    if name not in plan.decision.plans:
        known = ", ".join(plan.decision.plans)
        raise UsageError(f"method {str(method)!r}: decide() gave {shown(name)}; give one of its alternatives: {known}")
    chosen = plan.decision.plans[name]
    later = (step for step in chosen.steps if step.index > plan.decision.after)
    return replace(chosen, steps=(*(step for step in plan.steps if step.index <= plan.decision.after), *later))


def decided_plan(plan: Plan, result: PassResult, method: Method, step: Step, state: MethodState) -> Plan:
    """The plan that the method decides for behind a pass; of two processes, for which the first one's does.

    Raises:
        UsageError: if it gives no name of an alternative.
    """
    assert plan.decision is not None
    name, names = method.decide(result, step, state), list(plan.decision.plans)
    if step.split is not None and name in names:
        place = torch.tensor([names.index(name)], device=result.indices.device)
        name = names[int(step.split.first_rows(place))]
    return chosen_plan(plan, name, method)


def _checked(values: Any, shape: tuple[int, ...], name: str, method: Method, step: Step) -> Tensor:
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        place = f"at pass {step.index} ({step.grid})"
        raise UsageError(f"method {str(method)!r}: {name}() gave {given} {place}; give a tensor {shape}")
    return values


def checked_update(update: Any, tokens: TokenMap, method: Method, step: Step) -> Tensor:
    """What ``run_sublayer`` gave for a map.

    Raises:
        UsageError: if it is not one vector for each token.
    """
    return _checked(update, tuple(tokens.features.shape), "run_sublayer", method, step)
