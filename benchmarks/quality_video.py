"""What the embedded video model generates: ``python -m benchmarks.quality_video --out runs/clips.json``.

Held-out captions, generated densely, with every method that is asked for, and rendered for comparison; a judge that was
trained on renders says what is right in each clip, and clips of the same seed are compared to the dense ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command_line
from benchmarks.quality import generated
from stepvar.evaluation.candidates import Candidate, noise_floor
from stepvar.evaluation.machine import provenance
from stepvar.evaluation.metrics.fidelity import EQUAL, high_frequency_share, psnr
from stepvar.evaluation.metrics.scenes import judge_videos, load_clip_judge
from stepvar.evaluation.metrics.video import flicker
from stepvar.evaluation.scenes.clips.grammar import Clip, clip_caption, held_out_clips
from stepvar.evaluation.scenes.clips.judge import ClipJudge
from stepvar.evaluation.scenes.clips.render import render_clips
from stepvar.methods import make_method
from stepvar.models.infinity_star.codes import quantise
from stepvar.models.infinity_star.model import InfinityStar
from stepvar.models.infinity_star.schedules import code_passes
from stepvar.pipeline import Pipeline
from stepvar.utils.files import write_text
from training.verdicts import accuracies

METHODS = ("stepvar", "fastvar", "random", "skip-last")
FIRST_SEED = 100


def row_of(
    label: str, judge: ClipJudge, videos: Tensor, clips: Sequence[Clip], dense: Tensor | None = None
) -> dict[str, Any]:
    """What is right in videos (B, 3, T, H, W) in [0, 1], and how far they are from the dense ones."""
    row: dict[str, Any] = {"label": label, "accuracy": accuracies(judge_videos(judge, videos, clips))}
    if dense is not None:
        frames, reference = (values.transpose(1, 2).flatten(0, 1) for values in (videos, dense))
        row["psnr"] = float(psnr(videos, dense).clamp(max=EQUAL).mean())
        row["high_frequency"] = float(high_frequency_share(frames, reference).mean())
        row["flicker"] = float(flicker(videos, dense).own.nanmean())
    return row


@torch.inference_mode()
def references(pipe: Pipeline, clips: Sequence[Clip], batch: int) -> tuple[Tensor, Tensor]:
    """Renders of the clips, and these through the tokenizer and its quantiser; both in [0, 1]."""
    model: InfinityStar = pipe.model
    passes, grid = code_passes(model.config, pipe.schedule()), pipe.schedule().grids[-1]
    frames = model.config.tokenizer.frames(sum(clip[0][0].t for clip in passes))
    size = (frames, grid.h * model.config.stride, grid.w * model.config.stride)
    rendered, coded = [], []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        videos = render_clips(part, range(start, start + len(part)), *size, device=pipe.device)
        total = quantise(model.tokenizer.encode(videos, mean=True), passes)[1]
        rendered.append(videos)
        coded.append(model.tokenizer.decode(total).clamp(-1, 1))
    return (torch.cat(rendered) + 1) / 2, (torch.cat(coded) + 1) / 2


def measure(
    pipe: Pipeline, judge: ClipJudge, clips: list[Clip], batch: int, methods: Sequence[str], **settings: Any
) -> list[dict[str, Any]]:
    """One row per candidate."""
    captions = [clip_caption(clip) for clip in clips]
    seeds = range(FIRST_SEED, FIRST_SEED + len(clips))
    rendered, coded = references(pipe, clips, batch)
    dense = generated(pipe, captions, seeds, batch, **settings)
    rows = [row_of("renders", judge, rendered, clips), row_of("renders through the tokenizer", judge, coded, clips)]
    rows[1]["psnr_to_renders"] = float(psnr(coded, rendered).mean())
    rows.append(row_of("dense", judge, dense, clips, dense))
    for candidate in (noise_floor(2), *(Candidate(name, make_method(name)) for name in methods)):
        videos = generated(pipe, captions, seeds, batch, candidate.resampled, method=candidate.method, **settings)
        rows.append(row_of(candidate.label, judge, videos, clips, dense))
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the model card."""
    names = list(rows[0]["accuracy"])
    lines = ["| clips | " + " | ".join(names) + " | PSNR to dense | high-frequency energy | flicker, levels |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for row in rows:
        cells = [f"{100 * row['accuracy'][name][0]:.0f} %" for name in names]
        compared = "psnr" in row and row["label"] != "dense"
        cells += [f"{row['psnr']:.1f} dB", f"{100 * row['high_frequency']:.0f} %"] if compared else ["", ""]
        cells.append(f"{row['flicker']:.2f}" if "flicker" in row else "")
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-video")
    parser.add_argument("--judge", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    given = parser.parse_args()
    pipe = Pipeline.from_pretrained(given.model).to(given.device)
    judge = load_clip_judge(given.device, given.judge)
    settings = {"guidance_scale": given.guidance, "temperature": given.temperature}
    rows = measure(pipe, judge, held_out_clips(given.clips, seed=3), given.batch, given.methods, **settings)
    print(markdown(rows))
    info = provenance(pipe.device, command_line(__spec__)) | {"clips": str(given.clips)}
    write_text(given.out, json.dumps({"info": info, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
