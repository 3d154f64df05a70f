"""One image at a time: ``python -m benchmarks.study.single --out benchmarks/results/single.json``.

The methods of the study at one budget, in turn, round by round; figures are ratios within a round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command_line
from benchmarks.study.candidates import ABLATED, Entry, entries
from benchmarks.study.match import counted_speedup
from benchmarks.workload import Workload
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.run import cost_row, interleaved
from stepvar.evaluation.summary import cost
from stepvar.methods import Dense
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
    work = Workload.of(pipe, pipe.settings())
    dense = Entry("dense", "dense", Dense())
    chosen = [dense, *entries(counted_speedup(pipe, work.settings), ["methods"], [arguments.budget])]
    runs = interleaved(chosen, range(arguments.rounds), lambda entry, _: work.run(entry.method), warmup=1)
    timing = [{"method": entry.key, "round": number, **cost_row(report)} for number, entry, report in runs]
    rows = []
    for entry in chosen:
        found = cost(timing, entry.key, (dense.key,))
        milliseconds = 1e3 * found["loop_seconds"]["median"]
        row = {"label": entry.label, "speedup": entry.speedup, "measured": found["loop_speedup"]}
        rows.append(row | {"ms": milliseconds})
    info = provenance(pipe.device, command_line(__spec__)) | {"rounds": arguments.rounds}
    write_text(arguments.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")
    print(f"{arguments.out}: written", flush=True)


if __name__ == "__main__":
    main()
