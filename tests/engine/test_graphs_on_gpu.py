"""Graphs of the alternatives that a method decides between, on a GPU."""

from __future__ import annotations

import copy

import pytest
import torch

from stepvar.methods import Method
from tests.engine.test_replay import BESIDE, check_decisions
from tests.methods.families import ROWS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beside", BESIDE, ids=lambda parts: "+".join(map(str, parts)))
def test_each_alternative_is_captured_when_it_comes_again(beside: tuple[Method, ...], dtype: torch.dtype) -> None:
    check_decisions(copy.deepcopy(ROWS[0].model()).to("cuda", dtype), beside)
