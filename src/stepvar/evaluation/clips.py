"""Judging clips of the embedded video model by program."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from stepvar.evaluation.scenes.clips.grammar import Clip
from stepvar.evaluation.scenes.clips.judge import ClipJudge, judge_clips


def load_clip_judge(device: str | torch.device = "cpu", path: Path | None = None) -> ClipJudge:
    """The judge that ships with the embedded video model, or the one at ``path``."""
    shipped = Path(str(files("stepvar") / "weights" / "scenes-video" / "judge.safetensors"))
    return ClipJudge.load(path or shipped, torch.device(device))


@torch.inference_mode()
def judge_videos(
    judge: ClipJudge, videos: Tensor, clips: Sequence[Clip], batch: int = 16
) -> list[dict[str, bool | None]]:
    """What is right in each video (B, 3, T, H, W) in [0, 1]; None where its caption does not say."""
    verdicts = []
    for start in range(0, len(clips), batch):
        logits = judge(2 * videos[start : start + batch] - 1)
        verdicts += judge_clips(logits, clips[start : start + batch])
    return verdicts
