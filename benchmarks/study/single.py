"""One picture at a time: ``python -m benchmarks.study.single --out benchmarks/results/single.json``.

The methods of the study at one budget, in turn, round by round; figures are ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import command_line
from benchmarks.study.__main__ import counter
from benchmarks.study.candidates import ABLATED, entries
from benchmarks.study.driver import Driver
from stepvar.evaluation.drawing import Sampling
from stepvar.evaluation.scene_scores import load_judge
from stepvar.evaluation.scenes.grammar import held_out_scenes
from stepvar.evaluation.statistics import percentiles
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.single", description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=ABLATED)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(given)
    pipe = Pipeline.from_pretrained(arguments.model, device=arguments.device)
    plan = Sampling.of(pipe).plan(pipe)
    taking_part = [
        entry
        for entry in entries(counter(pipe, plan))
        if entry.group == "methods" and entry.budget in (arguments.budget, None)
    ]
    driver = Driver(pipe, load_judge(arguments.device), plan, taking_part, held_out_scenes(1), (256, 256))
    seconds = driver.latency(arguments.rounds, taking_part, lambda: None)
    dense = seconds[driver.dense.key]
    rows = [
        {
            "label": entry.candidate.label,
            "speedup": entry.speedup,
            "measured": percentiles([whole / own for whole, own in zip(dense, seconds[entry.key], strict=True)]),
            "ms": 1e3 * statistics.median(seconds[entry.key]),
        }
        for entry in [driver.dense, *taking_part]
    ]
    cuda = pipe.device.type == "cuda"
    info = {
        "command": command_line(__spec__),
        "machine": torch.cuda.get_device_name(pipe.device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
    }
    write_text(arguments.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")
    print(f"{arguments.out}: written", flush=True)


if __name__ == "__main__":
    main()
