"""Settings of equal cost."""

from __future__ import annotations

import pytest

from benchmarks.study.match import counted_speedup, match_cost
from stepvar.checkpoints import LoadedModel
from stepvar.errors import UsageError
from stepvar.methods import Method, Random, StepVAR
from stepvar.models.infinity import Infinity
from stepvar.pipeline import Pipeline
from tests.helpers import WIDE, make_settings


def test_matched_methods_cost_what_was_asked(tiny_model: Infinity) -> None:
    pipe = Pipeline(LoadedModel("tiny", "infinity", tiny_model, None, {}), None)
    speedup = counted_speedup(pipe, make_settings(WIDE))
    found = match_cost(lambda keep: StepVAR(keep=keep, last=3), speedup, 1.5)
    assert found.speedup == pytest.approx(1.5, abs=0.02) and speedup(found.method) == found.speedup
    other = match_cost(lambda keep: Random(keep=keep, last=3), speedup, 1.5)
    assert other.knob == pytest.approx(found.knob, abs=0.03)  # the same work but for the score
    assert match_cost(lambda keep: StepVAR(keep=keep, last=1), speedup, 50.0).knob == 0.02
    with pytest.raises(UsageError, match=r"speed-up 1\.0: must be above 1"):
        match_cost(lambda keep: StepVAR(keep=keep), speedup, 1.0)


def test_the_search_ends_where_its_ends_are_nearest() -> None:
    """A cost with a jump that no knob gets closer to than on either side of it."""

    def speedup(method: Method) -> float:
        assert isinstance(method, StepVAR) and isinstance(method.keep, float)
        return 3.0 if method.keep < 0.4 else 1.2

    found = match_cost(lambda keep: StepVAR(keep=keep), speedup, 1.5)
    assert found.speedup == 1.2 and found.knob >= 0.4
