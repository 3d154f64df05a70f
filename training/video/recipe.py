"""The whole recipe of the embedded video model: ``python -m training.video.recipe --out runs/video --device cuda``.

Tokenizer, with text encoder and judge beside it, then the transformer; stopped and started again, it goes on where it
was. With ``--limit`` a start ends by itself before so many seconds are over. Whatever there is at the end of a start is
copied to ``--export``. ``--install`` puts the finished result into the package.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch

from training.video.presets import PRESETS

MINUTES = {"text": 1.5, "judge": 2.1, "tokenizer": 6.7, "transformer": 8.1}
"""On two H100; a CPU needs more than a hundred times as long."""

SHARED = ("tokenizer", "transformer")
"""Stages that several GPUs work on together."""

RESERVE = 30.0
"""Seconds that a stage may need behind its limit, to judge and to write what it has made."""

SHIPPED = ("config.json", "transformer.safetensors", "tokenizer.safetensors", "text_encoder.safetensors")
CARDS = {
    "model/training.json": "training.json",
    "tokenizer.json": "tokenizer.json",
    "judge.json": "judge.json",
    "text.json": "text.json",
    "judge.safetensors": "judge.safetensors",
}


class Recipe:
    """One start of the recipe."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + options.limit - RESERVE

    def start(self, stage: str) -> subprocess.Popen[bytes] | None:
        """Starts a stage in a process of its own, so that its memory is free for the next; None if it is finished."""
        options = self.options
        if self.marker(stage).exists():
            return None
        minutes = MINUTES[stage] * options.scale_minutes
        command = [sys.executable, "-m", f"training.video.{stage}", "--out", str(options.out)]
        if options.processes > 1 and stage in SHARED:
            command[1:2] = ["-m", "torch.distributed.run", f"--nproc-per-node={options.processes}", "-m"]
        command += ["--minutes", f"{minutes:g}", "--device", "cpu" if stage == "text" else options.device]
        command += ["--preset", options.preset, "--limit", f"{max(1.0, self.deadline - time.monotonic()):.0f}"]
        print("+", " ".join(command), flush=True)
        return subprocess.Popen(command)

    def finish(self, stage: str, process: subprocess.Popen[bytes] | None) -> bool:
        """Waits for a stage and says whether it is finished.

        Raises:
            CalledProcessError: if it failed.
        """
        if process is None:
            return True
        if code := process.wait():
            raise subprocess.CalledProcessError(code, process.args)
        return self.marker(stage).exists()

    def marker(self, stage: str) -> Path:
        path: Path = self.options.out / f"{stage}.done"
        return path

    def run(self) -> bool:
        """All stages as far as the time goes; says whether all are finished."""
        beside = {stage: self.start(stage) for stage in ("text", "judge")}
        try:
            if not self.finish("tokenizer", self.start("tokenizer")) or not self.finish("text", beside.pop("text")):
                return False
            done = self.finish("transformer", self.start("transformer"))
            return self.finish("judge", beside.pop("judge")) and done
        finally:
            for stage, process in beside.items():
                self.finish(stage, process)


def collect(out: Path, folder: Path) -> list[str]:
    """Copies what there is of the model, its judge and the info of their training; names what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"model/{name}": name for name in SHIPPED} | CARDS
    for source, name in wanted.items():
        if (out / source).exists():
            shutil.copyfile(out / source, folder / name)
    return [source for source in wanted if not (out / source).exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="GPUs of this host that train together")
    parser.add_argument("--preset", choices=PRESETS, default="scenes-video")
    parser.add_argument("--scale-minutes", type=float, default=1.0, help="multiplies the time of every stage")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds until this start ends by itself")
    parser.add_argument("--export", type=Path, help="folder to which weights and cards are copied at the end")
    parser.add_argument("--install", action="store_true", help="put the finished model into the package")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    finished = False
    try:
        finished = Recipe(options).run()
    finally:
        if options.export is not None:
            collect(options.out, options.export)
    print("finished" if finished else "not finished: the same command goes on from here", flush=True)
    if options.install and finished:
        folder = Path(str(files("stepvar"))) / "weights" / "scenes-video"
        missing = collect(options.out, folder)
        print(f"installed into {folder}" + (f", without {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
