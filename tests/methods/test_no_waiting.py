"""No method waits for the device, or makes a shape of data: on the meta device there are no numbers to wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stepvar.core.plan import Step
from stepvar.core.tokens import ScaleSchedule, TokenMap
from stepvar.methods import METHODS, Method, make_method
from stepvar.methods.base import SublayerRef
from stepvar.methods.restoration import RESTORATIONS
from tests.helpers import CLIPS, WIDE, make_settings
from tests.methods.test_matrix import SMALLER

DEPTH = 4

CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, **SMALLER.get(name, {})} for name in METHODS},
    **{f"stepvar-{restore}": {"method": "stepvar", "restore": restore, "scope": "block"} for restore in RESTORATIONS},
    "sublayer": {"method": "stepvar", "restore": "cached", "scope": "sublayer", "propagate": "update"},
}


class Blocks:
    """Blocks of two sub-layers that add nothing, run as a method says."""

    depth = DEPTH

    def __init__(self, method: Method, step: Step) -> None:
        self.method, self.step = method, step

    def __call__(self, tokens: TokenMap, first: int = 0, last: int | None = None) -> TokenMap:
        for layer in range(first, DEPTH if last is None else last):
            for name in ("self", "ffn"):
                run: Callable[[TokenMap], Tensor] = lambda tokens: torch.zeros_like(tokens.features)  # noqa: E731
                update = self.method.run_sublayer(run, tokens, SublayerRef(layer, name, DEPTH), self.step)
                tokens = tokens.with_features(tokens.features + update)
        return tokens


@pytest.mark.parametrize("schedule", [WIDE, CLIPS], ids=["image", "video"])
@pytest.mark.parametrize("case", CASES)
def test_everything_runs_without_numbers(case: str, schedule: ScaleSchedule) -> None:
    settings = dict(CASES[case])
    method = make_method(settings.pop("method"), **settings)
    for step in method.edit(make_settings(schedule)).steps(2):
        tokens = TokenMap.dense(torch.empty(step.rows, step.grid.size, 8, device="meta"), step.grid)
        dense = method.run_stack(Blocks(method, step), tokens, step)
        assert dense.features.is_meta and dense.features.shape == tokens.features.shape
