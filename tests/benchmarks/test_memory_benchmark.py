"""The benchmark of memory, on tiny models of every family: what it runs, and what it does with a case that fails."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.workload import random_pipeline
from stepvar.cli.options import Memory
from stepvar.errors import UsageError
from stepvar.methods import StepVAR
from stepvar.models.registry import FAMILIES
from tests.benchmarks.test_cost import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "way", ["none", "cache_dtype=int8+tile=8+vae_slicing", "offload=sequential+blocks_on_device=1"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_with_every_option(family: str, way: str) -> None:
    pipe = random_pipeline(FAMILIES[family], CONFIGS[family], CPU, torch.bfloat16, "tiny")
    settings: dict[str, Any] = {"guidance_scale": 3.0}
    if FAMILIES[family].video:
        settings["seconds"] = 0
    row = memory.measure(pipe, StepVAR(keep=0.5, last=1), memory.parse_way(way), 5, **settings)
    assert row["measured"] > 0 and row["seconds"] > 0
    parts = row["parts"]
    assert row["dry_run"] == max(
        parts["weights"] + parts["cache"] + parts["scales"], parts["decoder_weights"] + parts["decoding"]
    )
    assert (pipe.model.offload is not None) == ("offload" in way)


def test_the_words_are_those_of_the_command_line() -> None:
    assert memory.parse_way("none") == Memory()
    assert memory.parse_way("offload=sequential+blocks_on_device=20") == Memory("sequential", 20)
    assert memory.parse_way("cache_dtype=int8+tile=32+vae_slicing") == Memory(None, None, "int8", 32, True)
    with pytest.raises(UsageError, match="offload='disk': must be one of"):
        memory.parse_way("offload=disk")


def test_a_case_that_fails_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        case = json.loads(command[-1])
        code = "import json; print(json.dumps(dict(dry_run=3 * 2**30, measured=4 * 2**30, seconds=1.5, parts=dict())))"
        if case["model"] == "8b":
            code = "raise MemoryError('out of memory')"
        return really_run([command[0], "-c", code], **_)

    really_run = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    memory.main(["--models", "8b,2b", "--methods", "dense", "--ways", "none", "--out", str(tmp_path / "memory.json")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 8b | dense | none | failed: MemoryError: out of memory |  |  |  |",
        "| 2b | dense | none | 3.00 GiB | 4.00 GiB | 0.750 | 1.50 |",
    ]
    assert [row["model"] for row in json.loads((tmp_path / "memory.json").read_text())["rows"]] == ["8b", "2b"]


def test_a_case_in_a_process_of_its_own_says_why_it_failed() -> None:
    case = {"model": "2b", "method": "unknown", "way": "none", "device": "cpu", "dtype": "bfloat16"}
    assert "unknown" in memory.run_apart(case)["error"]


@pytest.mark.parametrize(
    ("wrong", "said"), [(["--device", "cpu"], "must be a GPU"), (["--models", "9b"], "--models 9b: must be among")]
)
def test_what_cannot_be_measured_is_refused(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        memory.main(wrong)
    assert said in capsys.readouterr().err
