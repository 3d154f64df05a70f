"""The whole recipe of the embedded model: ``python -m training.recipe --out runs/scenes --device cuda``.

Text encoder, tokenizer, judge and transformer one after the other; stopped and started again, it goes on where it was.
``--install`` puts the result into the package.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch

from stepvar.checkpoints import read_state, save_weights
from training.presets import PRESETS

MINUTES = {"text": 2.0, "tokenizer": 5.0, "judge": 5.3, "transformer": 11.5}
"""On one H200; a CPU needs about a hundred times as long."""

SHIPPED = ("config.json", "transformer.safetensors", "tokenizer.safetensors", "text_encoder.safetensors")
CARDS = ("training.json",)


def run_stage(stage: str, out: Path, minutes: float, device: str, preset: str) -> None:
    """Runs one stage in a process of its own, so that its memory is free for the next."""
    command = [sys.executable, "-m", f"training.{stage}", "--out", str(out)]
    command += ["--minutes", str(minutes), "--device", device]
    command += ["--resume"] if stage == "judge" else ["--preset", preset]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def install(out: Path) -> None:
    """Copies the finished model, its judge and the info of their training into the package."""
    folder = Path(str(files("stepvar"))) / "weights" / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*SHIPPED, *CARDS):
        shutil.copyfile(out / "model" / name, folder / name)
    transformer = folder / "transformer.safetensors"  # the largest part, in eight bits
    save_weights(transformer, read_state(transformer), torch.float16, packed=True)
    for name in ("judge.safetensors", "judge.json", "tokenizer.json"):
        shutil.copyfile(out / name, folder / name)
    print(f"installed into {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="scenes")
    parser.add_argument("--scale-minutes", type=float, default=1.0, help="multiplies the time of every stage")
    parser.add_argument("--install", action="store_true")
    arguments = parser.parse_args()
    for stage, minutes in MINUTES.items():
        done = arguments.out / f"{stage}.done"
        if not done.exists():
            scaled = minutes * arguments.scale_minutes
            run_stage(stage, arguments.out, scaled, arguments.device, arguments.preset)
            done.touch()
    if arguments.install:
        install(arguments.out)


if __name__ == "__main__":
    main()
