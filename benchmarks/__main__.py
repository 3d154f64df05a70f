"""All measurements of the embedded model that a CPU can make: ``python -m benchmarks``; results go to ``runs/``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = Path("runs")

METHODS = ("stepvar", "high-pass", "random", "fastvar", "skip-last", "drop-guidance", "stepvar+drop-guidance")

COMMANDS = (
    ("speed", "--model", "scenes", "--rounds", "5", "--out", "runs/speed-scenes.json"),
    (
        "speed",
        "--model",
        "scenes",
        "--decode",
        "--keep",
        "--speedups",
        "1.5",
        "2",
        "--methods",
        *METHODS,
        "--out",
        "runs/budget-scenes.json",
    ),
    ("quality", "--out", "runs/quality.json"),
)


def main() -> None:
    RUNS.mkdir(exist_ok=True)
    for module, *arguments in COMMANDS:
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        print("+", *command[1:], flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
