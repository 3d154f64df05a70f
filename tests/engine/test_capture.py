"""What a CUDA graph would refuse, found without a GPU: copies from the host, and waiting for the device."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepvar.engine.noise import NoiseTape
from stepvar.generation import run_pass
from stepvar.kernels.linear import QUANTIZATIONS, Quantization
from stepvar.methods import METHODS, Method, make_method
from stepvar.utils.tensors import map_tensors
from tests.helpers import make_settings
from tests.methods.families import ROWS, FamilyRow
from tests.methods.test_matrix import REFUSED, SMALLER

CAPTURED = [name for name in METHODS if make_method(name).knows_counts]

METHOD_CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, **SMALLER.get(name, {})} for name in CAPTURED if name != "random"},
    "blend": {"method": "stepvar", "restore": "blend"},
    "anchors": {"method": "stepvar", "restore": "anchors"},
    "cached": {"method": "stepvar", "restore": "cached"},
    "dropped": {"method": "stepvar-plus", "drop_guidance": 2, "structure": "component"},
    "sublayer": {"method": "stepvar", "scope": "sublayer", "propagate": "update"},
}
"""The random baseline copies from pinned memory, as a graph may; on the meta device that looks like other copies."""


ONE_EACH = list({row.family: row for row in ROWS}.values())
"""One schedule of each family."""

BOTH_MEDIA = ("infinity", "infinity-star")

QUICK = ("dense", "stepvar", "sublayer", "scalekv")

EVERY_CASE = [
    pytest.param(
        row,
        case,
        id=f"{row}-{case}",
        marks=[pytest.mark.slow] if row.family not in BOTH_MEDIA and case not in QUICK else [],
    )
    for row in ONE_EACH
    for case in METHOD_CASES
]
"""Methods know no family, so each runs on one for images and one for videos, and with the slow tests on all others."""


QUANTISED_CASES = [
    pytest.param(
        row, kind, id=f"{row}-{kind}", marks=[] if kind == "int8" or row.family == "infinity" else [pytest.mark.slow]
    )
    for row in ONE_EACH
    for kind in QUANTIZATIONS
]
"""Every family with one kind, and one family with all."""


@cache
def on_meta(row: FamilyRow) -> Any:
    """The family's small model without numbers."""
    return copy.deepcopy(row.model()).to("meta")


class MetaNoise:
    """Random numbers of which only the shape matters."""

    def exponential(self, scale: int, shape: Any, device: Any, name: str | None = None) -> Tensor:
        return torch.empty(tuple(shape), device="meta")

    def soft(self, scale: int, drawn: Tensor) -> Tensor:
        return torch.empty_like(drawn)

    def normal(self, scale: int, turn: int | str, shape: Any, device: Any) -> Tensor:
        return torch.empty(tuple(shape), device="meta")


class RefuseCopies(TorchDispatchMode):
    """Raises where a tensor of the host meets the device, or a number of the device is read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        hosts = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.ndim > 0]
        devices = [tensor for tensor in (*tensors, *made) if tensor.is_meta]
        if hosts and devices:
            raise AssertionError(f"{func}: a tensor {tuple(hosts[0].shape)} of the host meets the device")
        if str(func) == "aten._local_scalar_dense.default" and any(tensor.is_meta for tensor in tensors):
            raise AssertionError(f"{func}: waits for the device")
        return result


@pytest.mark.parametrize(("row", "case"), EVERY_CASE)
def test_a_pass_takes_nothing_from_the_host(row: FamilyRow, case: str) -> None:
    settings = dict(METHOD_CASES[case])
    if case in REFUSED and REFUSED[case](row, "guided"):
        pytest.skip("a method that refuses this family, see test_matrix.py")
    run_refusing_copies(on_meta(row), row, make_method(settings.pop("method"), **settings))


@pytest.mark.parametrize(("row", "kind"), QUANTISED_CASES)
def test_nor_does_a_pass_with_quantised_weights(row: FamilyRow, kind: Quantization) -> None:
    run_refusing_copies(copy.deepcopy(on_meta(row)).quantize(kind), row, make_method("stepvar"))


def run_refusing_copies(model: Any, row: FamilyRow, method: Method) -> None:
    samples = 2 if method.static else 1
    plan = method.plan(make_settings(row.schedule, 3.0), model.info, samples)
    condition = model.stage(row.condition(range(samples)), plan, padded=True)
    staged = map_tensors(condition, lambda tensor: tensor.to("meta"))
    tape = NoiseTape(MetaNoise())
    with torch.inference_mode():
        method_state = method.start(plan)
        method_state.use(tape)
        for attempt in range(2):  # tables are made in the first generation, which is never captured
            if attempt:
                tape.allocate(torch.device("meta"))
            refuse = RefuseCopies() if attempt else torch.no_grad()
            with refuse:
                state = model.begin(staged, plan)
                for step in plan.steps:
                    run_pass(model, state, method, method_state, step, tape)


def test_the_mode_refuses_what_it_should() -> None:
    device = torch.zeros(3, device="meta")
    with RefuseCopies(), pytest.raises(AssertionError, match="meets the device"):
        torch.ones(3).to("meta")
    with RefuseCopies(), pytest.raises(AssertionError, match="meets the device"):
        device.copy_(torch.ones(3))
