"""Numbers and names of the command line: refused in one line, before anything is loaded."""

from __future__ import annotations

import logging

import pytest

from stepvar.cli import main
from stepvar.utils.log import logger


@pytest.mark.parametrize(
    "line",
    [
        "generate x --num-images 2147483648",
        "generate x --num-images 0",
        "generate x --runs -1 --compare",
        "generate x --set power_iterations=1000000000",
        "generate x --set structure_weight=inf",
        "generate x --keep nan",
        "generate x --keep=",
        "generate x --last 1.5",
        "generate x --dtype float64",
        "generate x --device tpu",
        "demo --runs 0",
        "calibrate --num-images 0",
        "eval --out run --seeds ²",
        f"eval --out run --seeds {'9' * 5000}",
        "eval --out run --seeds 1,1",
        "eval --out run --batch 0",
        "eval --out run --limit 0",
        "plan --num-images 0",
        "plan --text 0",
        "plan --memory nan",
        "plan --tile -1",
        "plan --guidance-scale 1e39",
        "plan --aspect-ratio=",
        "plan --aspect-ratio 10:1",
        "plan --resolution=",
    ],
)
def test_wrong_numbers_and_names(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stepvar.checkpoints.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main(line.split(" ")) == 2
    said = capsys.readouterr().err
    assert said.startswith("stepvar: error: ") and said.count("\n") == 1 and len(said) < 400
    assert "internal" not in said


def test_the_log_is_shown_and_let_go(capsys, monkeypatch):
    def work(arguments):
        logger.info("half way")
        logger.warning("careful")
        return 0

    monkeypatch.setattr("stepvar.cli.app._run", work)
    level = logger.level
    main(["plan"])
    assert capsys.readouterr().err == "stepvar: half way\nstepvar: warning: careful\n"
    main(["plan", "--quiet"])
    assert capsys.readouterr().err == "stepvar: warning: careful\n"
    assert logger.level == level and all(type(handler) is logging.NullHandler for handler in logger.handlers)
