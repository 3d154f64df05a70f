"""The process's settings are kept away from a computation, and come back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.utils.ambient import stated_formats


def settings() -> list[Any]:
    """What the process has set, by the older and the newer names of PyTorch; those that cannot be read as None."""
    found: list[Any] = [torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")]
    backends: Any = torch.backends
    reads: tuple[Callable[[], Any], ...] = (
        torch.get_float32_matmul_precision,
        lambda: backends.cudnn.allow_tf32,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cuda.matmul.fp32_precision,
        lambda: backends.cudnn.conv.fp32_precision,
        lambda: backends.mkldnn.matmul.fp32_precision,
    )
    for read in reads:
        try:
            found.append(read())
        except (RuntimeError, AttributeError):
            found.append(None)
    return found


def assert_stated() -> None:
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).device.type == "cpu"
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_type_is_float32_within(dtype):
    torch.set_default_dtype(dtype)
    try:
        with stated_formats():
            assert_stated()
            assert torch.empty(1).dtype == torch.float32
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_new_tensors_are_on_the_cpu_within():
    torch.set_default_device("meta")
    try:
        with stated_formats():
            assert_stated()
        assert torch.zeros(1).is_meta
    finally:
        torch.set_default_device(None)
    with torch.device("meta"), stated_formats():
        assert_stated()


def test_nothing_runs_under_autocast_within():
    one = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with stated_formats():
            assert (one @ one).dtype == torch.float32
        assert (one @ one).dtype == torch.bfloat16


ROUNDING = """
import torch
from stepvar.utils.ambient import stated_formats
from stepvar.utils.device import deterministic
from tests.utils.test_ambient import settings
{chosen}
before = settings()
for guard in (stated_formats, deterministic):
    with guard(), stated_formats():
        assert torch.get_float32_matmul_precision() == "highest", torch.get_float32_matmul_precision()
    assert settings() == before, (settings(), before)
"""


@pytest.mark.parametrize(
    "chosen",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    ],
)
def test_rounded_products_are_off_within_and_back_after(chosen):
    if "fp32_precision" in chosen and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this PyTorch has no such name")
    # In a process of its own: a mix of older and newer names cannot be taken back.
    code = ROUNDING.format(chosen=chosen)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_an_error_gives_the_settings_back():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(KeyError), stated_formats():
            raise KeyError
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_last_of_several_threads_gives_the_settings_back():
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def work() -> None:
        with stated_formats():
            entered.set()
            leave.wait(30)
            seen.append(torch.get_default_dtype())

    torch.set_default_dtype(torch.float64)
    try:
        with stated_formats():
            other = threading.Thread(target=work)
            other.start()
            assert entered.wait(30)
        assert torch.get_default_dtype() == torch.float32  # the other one still runs
        leave.set()
        other.join(30)
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
    finally:
        leave.set()
        torch.set_default_dtype(torch.float32)
