"""Judging pictures of scenes by program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from stepvar.scenes.grammar import Scene
from stepvar.scenes.judge import Judge, judge_scenes


def load_judge(device: str | torch.device = "cpu", path: Path | None = None) -> Judge:
    """The judge that ships with the embedded model, or the one at ``path``."""
    shipped = Path(str(files("stepvar") / "weights" / "scenes" / "judge.safetensors"))
    return Judge.load(path or shipped, torch.device(device))


@torch.inference_mode()
def judge_pictures(
    judge: Judge, pictures: Tensor, scenes: Sequence[Scene], batch: int = 64
) -> list[dict[str, bool | None]]:
    """What is right in each picture (B, 3, H, W) in [0, 1]; None where its caption does not say."""
    verdicts = []
    for start in range(0, len(scenes), batch):
        logits = judge(2 * pictures[start : start + batch] - 1)
        verdicts += judge_scenes(logits, scenes[start : start + batch])
    return verdicts


def accuracies(verdicts: Sequence[Mapping[str, bool | None]]) -> dict[str, tuple[float, int]]:
    """Per attribute the share that is right, and of how many."""
    table = {}
    for name in verdicts[0]:
        spoken = [verdict[name] for verdict in verdicts if verdict[name] is not None]
        if spoken:
            table[name] = (sum(map(bool, spoken)) / len(spoken), len(spoken))
    return table
