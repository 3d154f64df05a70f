"""The part of a plan that each of two processes runs, one guidance branch each."""

from __future__ import annotations

from dataclasses import replace

from stepvar.core.exchange import Exchange, Split
from stepvar.core.guidance import UNCONDITIONAL
from stepvar.core.plan import Decision, Plan, Step
from stepvar.errors import UsageError


def split_plan(plan: Plan, exchange: Exchange) -> Plan:
    """What this process runs of a plan: its branch of each pass, up to the last that needs the unconditional one.

    The process of the conditional branch goes on from there as one process would.

    Raises:
        UsageError: if no pass runs both branches.
    """
    if not any(step.branches == 2 for step in plan.computed):
        scales = ", ".join(f"{scale:g}" for scale in sorted(set(plan.settings.guidance)))
        raise UsageError(
            f"parallel='guidance': no pass has both guidance branches (guidance scale {scales}), so there is nothing "
            "for a second process; give a guidance_scale above 1, or leave parallel out"
        )
    return _split(plan, exchange)


def _split(plan: Plan, exchange: Exchange) -> Plan:
    last, decision = _last_split(plan), plan.decision
    steps = tuple(_split_step(step, exchange) if step.index <= last else step for step in plan.steps)
    if exchange.branch == 1:
        steps = tuple(step for step in steps if step.index <= last)
    if decision is not None:
        plans = {name: _split(choice, exchange) for name, choice in decision.plans.items()}
        decision = Decision(decision.after, plans) if exchange.branch == 0 or decision.after <= last else None
    return replace(plan, steps=steps, decision=decision)


def _last_split(plan: Plan) -> int:
    """The last pass that needs the unconditional branch, whatever is chosen meanwhile; -1: none."""
    own = [index for index, branches in plan.settings.branches.items() if UNCONDITIONAL in branches]
    choices = plan.decision.plans.values() if plan.decision is not None else ()
    return max([-1, *own, *map(_last_split, choices)])


def _split_step(step: Step, exchange: Exchange) -> Step:
    if not step.computed:
        return step
    return replace(
        step,
        branches=1,
        first_row=exchange.branch * step.samples,
        split=Split(exchange, step.branches, step.first_row),
        together=tuple(_split_step(other, exchange) for other in step.together),
    )


def held_rows(plan: Plan) -> slice:
    """The rows whose keys and values a process keeps: all, or those of the one guidance branch that it runs."""
    split = next((step.split for step in plan.steps if step.split is not None), None)
    if split is None:
        return slice(0, plan.rows)
    return slice(split.exchange.branch * plan.samples, (split.exchange.branch + 1) * plan.samples)


def whole_plan(plan: Plan) -> Plan:
    """What one process would run in place of two, of the plan of the conditional branch."""
    return replace(plan, steps=tuple(map(_whole_step, plan.steps)))


def _whole_step(step: Step) -> Step:
    if step.split is None:
        return step
    split, together = step.split, tuple(map(_whole_step, step.together))
    return replace(step, branches=split.branches, first_row=split.first_row, split=None, together=together)
