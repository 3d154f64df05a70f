from __future__ import annotations

import os
import warnings

import pytest
import torch

import stepvar
from stepvar.utils.device import WORKSPACE, deterministic, full_precision


def state() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        os.environ.get(WORKSPACE),
    )


def test_sets_and_restores() -> None:
    before = state()
    with deterministic():
        assert state() == (True, False, "highest", (torch.backends.cudnn.enabled, False, True, False), ":4096:8")
        with deterministic(strict=False):
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert state() == before


def test_restores_behind_an_error() -> None:
    before = state()
    with pytest.raises(RuntimeError, match="on purpose"), deterministic():
        raise RuntimeError("on purpose")
    assert state() == before


def test_keeps_the_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state()
        with deterministic():
            assert os.environ[WORKSPACE] == ":16:8"
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_says_when_it_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.warns(UserWarning, match=f"set {WORKSPACE}=:4096:8 before the process starts") as caught,
        deterministic(),
    ):
        pass
    assert caught[0].filename == __file__
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with deterministic():
            pass


def test_full_precision_restores() -> None:
    before = state()
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    assert state() == before


def test_is_public() -> None:
    assert stepvar.deterministic is deterministic
