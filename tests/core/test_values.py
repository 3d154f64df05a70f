"""What users give: converted where it has a meaning, refused in one line where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from stepvar.core.values import (
    Range,
    check_fields,
    checked,
    describe_kind,
    device_of,
    dtype_of,
    flag,
    nearest,
    number,
    shown,
    text,
    whole_number,
)
from stepvar.errors import UsageError

Share = Annotated[float | Sequence[float], Range(above=0, most=1)]


@pytest.mark.parametrize(
    "given", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int8)]
)
def test_a_whole_number_of_any_library_is_one_of_python(given):
    found = whole_number("seed", given)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_number_of_any_library_is_one_of_python(given):
    found = number("keep", given)
    assert found == 0.5 and type(found) is float


@pytest.mark.parametrize(
    "given",
    [True, np.True_, torch.tensor(True), 2.0, np.float64(2), "2", None, [2], np.array([2]), torch.tensor([2]), 2 + 0j],
)
def test_what_is_no_whole_number_is_refused(given):
    with pytest.raises(UsageError, match=r"^top_k=.*: must be a whole number$"):
        whole_number("top_k", given)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -np.inf, torch.tensor(torch.nan), 10**400, True, "1"])
def test_what_is_no_finite_number_is_refused(given):
    with pytest.raises(UsageError, match=r"^scale=.*: must be a number$"):
        number("scale", given)


def test_numbers_of_thousands_of_digits_are_refused_in_a_short_line():
    with pytest.raises(UsageError, match=r"^seed=a int: must be a whole number from 0 to 9$"):
        whole_number("seed", 10**5000, Range(0, 9))


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Range(1, 4), "from 1 to 4", (1, 4), (0, 5)),
        (Range(least=0, below=1), "of at least 0 and below 1", (0, 0.9), (-1e-9, 1)),
        (Range(above=0, most=1), "above 0 and at most 1", (1e-9, 1), (0, 1.1)),
        (Range(least=2), "of at least 2", (2, 1e9), (1.9,)),
    ],
)
def test_bounds_hold_as_they_are_said(bounds, words, inside, outside):
    for value in inside:
        assert number("x", value, bounds) == value
    for value in outside:
        with pytest.raises(UsageError, match=f"must be a number {words}$"):
            number("x", value, bounds)


@pytest.mark.parametrize(
    "given",
    [[0.5, 0.25], (0.5, 0.25), np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), [np.float32(0.5), torch.tensor(0.25)]],
)
def test_lists_and_arrays_become_tuples(given):
    assert checked("keep", given, Share) == (0.5, 0.25)


def test_the_entry_that_is_wrong_is_named():
    with pytest.raises(UsageError, match=r"^keep=2.0: must be a number above 0 and at most 1$"):
        checked("keep", np.array([0.5, 2.0]), Share)


@pytest.mark.parametrize("given", ["0.5,0.25", {0.5: 1}, {0.5}, b"12", np.zeros((2, 2)), iter([0.5])])
def test_what_is_no_list_is_refused(given):
    with pytest.raises(UsageError, match=r"^keep=.*a number above 0 and at most 1, or a list"):
        checked("keep", given, Share)


def test_lists_are_refused_by_their_length_before_they_are_read():
    with pytest.raises(UsageError, match=r"^range\(0, 2147483648\): has 2147483648 entries; give at most 10000$"):
        checked("seed", range(2**31), Sequence[int])


def test_a_tensor_without_values_is_refused():
    with pytest.raises(UsageError, match=r"must be a number$"):
        number("x", torch.empty((), device="meta"))


@dataclass(frozen=True)
class Given:
    share: Share = 0.5
    last: Annotated[int | None, Range(1, 8, none="to choose by the schedule")] = None
    how: Literal["one", "all"] = "one"
    sure: bool = False
    whatever: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


def test_the_fields_of_a_dataclass_are_converted():
    others: dict[str, Any] = {"share": np.array([0.5]), "last": np.int32(2), "sure": np.True_}
    given = Given(**others, whatever=[1])
    assert given == Given((0.5,), 2, sure=True, whatever=[1])
    assert type(given.last) is int and given.sure is True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"last": 0}, r"last=0: must be a whole number from 1 to 8, or None to choose by the schedule"),
        ({"last": 1.5}, r"last=1\.5: must be a whole number from 1 to 8, or None"),
        ({"how": "some"}, r"how='some': must be one of one, all"),
        ({"how": 1}, r"how=1: must be one of one, all"),
        ({"sure": 1}, r"sure=1: must be True or False"),
        ({"share": float("nan")}, r"share=nan: must be a number above 0 and at most 1"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(wrong, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        Given(**wrong)


def test_a_class_inside_a_function_keeps_what_its_annotations_say_here():
    Local = Literal["a", "b"]

    @dataclass(frozen=True)
    class Inner(Given):
        word: Local = "a"

    with pytest.raises(UsageError, match="last=0"):
        Inner(last=0)


def test_kinds_are_described_in_words():
    assert describe_kind(Share) == "a number above 0 and at most 1, or a list of such numbers"
    assert describe_kind(bool) == "True or False"


@pytest.mark.parametrize("given", [0, 1, None, "yes", np.float32(1)])
def test_what_is_no_bool_is_refused(given):
    with pytest.raises(UsageError, match=r"more_smooth=.*: must be True or False"):
        flag("more_smooth", given)


@pytest.mark.parametrize("given", ["", "  ", None, 3])
def test_an_empty_text_is_not_the_same_as_none(given):
    with pytest.raises(UsageError, match=r"variant=.*: must be a text that is not empty"):
        text("variant", given)


def test_a_long_value_is_cut_and_in_one_line():
    assert len(shown("x" * 10_000)) < 100
    assert "\n" not in shown(np.zeros((9, 9)))


@pytest.mark.parametrize("given", ["bf16", "bfloat16", "torch.bfloat16", "BFloat16", torch.bfloat16])
def test_a_number_format_has_several_names(given):
    assert dtype_of("dtype", given) is torch.bfloat16


@pytest.mark.parametrize("given", ["float64", torch.float64, "int8", "", "auto", None, 16, np.float32, "manual_seed"])
def test_other_number_formats_are_refused(given):
    with pytest.raises(UsageError, match=r"^dtype .*: unknown; choose one of float32, bfloat16, float16$"):
        dtype_of("dtype", given)


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_has_several_names(given):
    assert device_of("device", given).type == "cpu"


@pytest.mark.parametrize(("given", "count"), [("cuda", 0), ("cuda:1", 1), (0, 0), (3, 2), (torch.device("cuda", 4), 2)])
def test_a_gpu_that_is_not_there_is_refused_in_one_line(given, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError, match=r"^device '?cuda.*: this machine has none that PyTorch can use; try cpu$"):
        device_of("device", given)


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("device", "auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("device", "auto") == torch.device("cuda")


@pytest.mark.parametrize("given", ["tpu", "", "meta", -1, None, 1.5, True, np.zeros(2), torch.zeros(1)])
def test_other_devices_are_refused(given):
    with pytest.raises(UsageError, match=r"^device .*: unknown; choose one of cpu, cuda, mps, auto$"):
        device_of("device", given)


def test_the_word_most_like_an_unknown_one_is_named():
    assert nearest("guidence_scale", ["guidance_scale", "seed"]) == "; did you mean 'guidance_scale'?"
    assert nearest("xyz", ["guidance_scale", "seed"]) == ""
