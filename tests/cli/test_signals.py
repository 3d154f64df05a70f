"""Signals end a command cleanly, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from stepvar.cli.signals import AGAIN, ending_signals

PROMPT = "a large red circle on grass"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("wait", [0.15, 0.4, 1.5])
def test_signals_end_a_command_cleanly_at_any_moment(
    shared_model: Path, tmp_path: Path, number: signal.Signals, status: int, wait: float
) -> None:
    """The first moments are those of the imports, which take seconds."""
    code = "import sys; from stepvar.__main__ import main; print('x', flush=True); sys.exit(main())"
    arguments = ["generate", PROMPT, "--model", str(shared_model), "--num-images", "3000", "-q"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "x\n"
    time.sleep(wait)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert said == f"stepvar: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_somebody_drops_comes_again() -> None:
    """Compiled modules drop what an optional import raises."""
    with pytest.raises(KeyboardInterrupt), ending_signals() as came:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("not interrupted")
        for _ in range(600):
            time.sleep(0.1)
    assert came == [signal.SIGTERM]


def test_an_interrupt_does_not_disturb_what_it_began() -> None:
    closed = False
    with pytest.raises(KeyboardInterrupt), ending_signals():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            try:
                raise OSError
            except OSError:
                time.sleep(2.5 * AGAIN)
            closed = True
    assert closed


def test_what_a_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(KeyboardInterrupt), ending_signals() as came:
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
