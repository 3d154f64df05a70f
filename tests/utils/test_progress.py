"""Bars on a terminal say how long it will take; nowhere else is anything shown."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from rich import progress

from stepvar.pipeline import Pipeline
from stepvar.utils.progress import bar, scale_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not as a fixture: between set-up and test pytest puts its own stream there."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def run_scales(weights: Mapping[int, float], clock: Any = None) -> list[int]:
    seen: list[int] = []
    with scale_bar(True, weights, lambda step, state: seen.append(step.index)) as on_scale_end:
        for index in range(3):
            if clock is not None:
                clock()
            step: Any = SimpleNamespace(index=index)
            on_scale_end(step, None)
    return seen


def test_time_left_goes_by_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of passes of 1, 1 and 98 hundredths of the time, the first two took ten seconds each: 980 are left."""
    terminal, now = as_terminal(monkeypatch), [0.0]

    def tick() -> None:
        now[0] += 10.0

    class Clocked(progress.Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, get_time=lambda: now[0], **options)

    monkeypatch.setattr("rich.progress.Progress", Clocked)
    assert run_scales({0: 1.0, 1: 1.0, 2: 98.0}, tick) == [0, 1, 2]
    shown = terminal.getvalue()
    assert all(count in shown for count in ("0/3", "1/3", "2/3", "3/3"))
    assert "0:16:20" in shown


def test_a_generation_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, terminal = Pipeline.from_pretrained("scenes"), as_terminal(monkeypatch)
    pipe("a red circle", seed=0)
    passes = len(pipe.schedule())
    assert f"{passes}/{passes}" in terminal.getvalue() and re.search(r"0:00:\d\d", terminal.getvalue())


def test_a_number_of_steps_that_is_not_known_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stepvar.utils.progress.SILENCE", 0.0)
    with caplog.at_level("INFO", "stepvar"), bar("measuring", None, True) as advance:
        advance()
    assert caplog.messages == ["measuring: 1 of ?"]
    terminal = as_terminal(monkeypatch)
    with bar("measuring", None, True) as advance:
        advance()
        assert "1/?" in terminal.getvalue()
        advance(2)
    assert "2/2" in terminal.getvalue()


def test_nothing_is_shown_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with scale_bar(True, {0: 1.0, 1: 1.0}, None) as on_scale_end:
        step: Any = SimpleNamespace(index=0)
        on_scale_end(step, None)
    with bar("frames", 3, True) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
