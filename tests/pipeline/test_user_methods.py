"""Methods of a user's own: what is wrong with one is said, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from stepvar.errors import MethodError, StepvarError, UsageError
from stepvar.methods import Compose, DropGuidance, Method, Pruning


@dataclass(frozen=True)
class Broken(Method):
    name: ClassVar[str] = "broken"
    how: str = "nan"

    def run_stack(self, run, tokens, step, state):
        if self.how == "none":
            return None
        if self.how == "half":
            return tokens.take(torch.zeros(len(tokens.features), 1, dtype=torch.int64))
        if self.how == "error":
            raise ZeroDivisionError("mine")
        return run(tokens).with_features(tokens.features * torch.nan)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("nan", StepvarError, r"pass 0 \(1x1\): NaN or infinity behind the blocks, .* method 'broken'"),
        ("none", UsageError, r"method 'broken': run_stack\(\) gave a NoneType at pass 0"),
        ("half", UsageError, r"method 'broken': run_stack\(\) gave features \(2, 1, \d+\) at pass 1"),
        ("error", MethodError, r"'broken' failed \(test_user_methods\.py:\d+, in run_stack\): ZeroDivisionError"),
    ],
)
def test_what_a_method_gives_back_is_looked_at(pipe, how, error, message):
    with pytest.raises(error, match=message):
        pipe(class_labels=1, seed=1, method=Broken(how=how))


def test_the_traceback_of_a_method_s_own_error_is_kept(pipe):
    with pytest.raises(MethodError) as caught:
        pipe(class_labels=1, seed=1, method=Broken(how="error"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@dataclass(frozen=True)
class Nameless(Pruning):
    def score(self, tokens, step, state) -> Tensor:
        return tokens.features.float().sum(-1)


@dataclass(frozen=True)
class Miscounts(Method):
    name: ClassVar[str] = "miscounts"

    def tokens_at(self, step, layer, depth):
        return step.grid.size / 2


def test_an_incomplete_method_is_refused(pipe):
    with pytest.raises(UsageError, match=r"Nameless: name=None; give it one of its own"):
        pipe(class_labels=1, method=Nameless())
    with pytest.raises(UsageError, match=r"'miscounts': tokens_at\(\) gave 0\.5 at pass 0"):
        pipe(class_labels=1, method=Miscounts())


@dataclass(frozen=True)
class Counting(Method):
    name: ClassVar[str] = "counting"
    asked: ClassVar[int] = 0
    keep: float = 1.0

    def tokens_at(self, step, layer, depth):
        type(self).asked += 1
        return step.grid.size


def test_calls_alike_are_planned_once(pipe):
    pipe(class_labels=1, seed=1, method=Counting())
    asked = Counting.asked
    pipe(class_labels=2, seed=2, method=Counting())
    assert Counting.asked == asked > 0
    pipe(class_labels=1, seed=1, method=Counting(keep=0.5))
    pipe(class_labels=[1, 2], seed=1, method=Counting())
    pipe(class_labels=1, seed=1, guidance_scale=0.0, method=Counting())
    assert Counting.asked >= 4 * asked


@dataclass(frozen=True)
class Listing(Method):
    name: ClassVar[str] = "listing"
    asked: ClassVar[int] = 0
    shares: Any = ()

    def tokens_at(self, step, layer, depth):
        type(self).asked += 1
        return step.grid.size


def test_what_cannot_be_told_apart_is_planned_anew(pipe):
    for _ in range(2):
        before = Listing.asked
        pipe(class_labels=1, seed=1, method=Listing(shares=np.zeros(2000)))
        assert Listing.asked > before


def test_a_class_that_was_written_again_is_another_method(pipe):
    def written(count):
        @dataclass(frozen=True)
        class Mine(Counting):
            name: ClassVar[str] = "mine"

            def tokens_at(self, step, layer, depth):
                asked.append(count)
                return step.grid.size

        return Mine()

    asked: list[int] = []
    for count in (1, 2):
        pipe(class_labels=1, seed=1, method=Compose(written(count), DropGuidance(last=1)))
    assert set(asked) == {1, 2}
