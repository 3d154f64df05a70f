"""Plans, and how much work they are, without a model."""

from __future__ import annotations

from typing import Any

from stepvar.core.plan import Plan
from stepvar.core.stack import ModelInfo
from stepvar.core.tokens import ScaleSchedule
from stepvar.methods import Method, MethodState
from tests.helpers import make_settings

DEPTH = 4


def plan_of(method: Method, schedule: ScaleSchedule, guidance: float = 3.0, samples: int = 1) -> Plan:
    """The plan of a method for a model of four blocks."""
    return method.plan(make_settings(schedule, guidance), ModelInfo(DEPTH), samples)


def work(plan: Plan) -> float:
    """What a generation takes, roughly: tokens that run and pairs that attention computes."""
    return sum(plan.pass_weights.values())


def noting_states(kind: type[Method]) -> tuple[type[Any], list[Any]]:
    """A method like this one, and the states of its generations."""
    states: list[Any] = []

    class Noting(kind):  # type: ignore[valid-type, misc]
        def start(self, plan: Plan) -> MethodState:
            states.append(super().start(plan))
            return states[-1]

    return Noting, states
