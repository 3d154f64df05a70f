"""What "wardrobe" can do: ``python -m training.wardrobe.evaluate --photographs FOLDER --model runs/wardrobe/packed``.

Of the tokenizer: PSNR, fine detail and hue on held-out photographs. Of the whole: pictures of the captions of held-out
photographs, looked at by a probe (a logistic regression on features of EfficientNet-Lite0, trained on the training
photographs) for the garment and by the captions' own rule for the colour; and the training photographs nearest to each
of 32 of them, shown. Everything on the CPU or a GPU, with fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar import Pipeline
from stepvar.evaluation.machine import provenance
from training.loop import command_line
from training.wardrobe.captioned import Captioned
from training.wardrobe.captions import Description, caption
from training.wardrobe.colours import COLOURS
from training.wardrobe.lite0 import load_lite0
from training.wardrobe.looks import sheet
from training.wardrobe.measure import FINE, Measurer
from training.wardrobe.photographs import read_photographs
from training.wardrobe.presets import PRESETS
from training.wardrobe.probe import Probe, features, features_of, whole_photographs
from training.wardrobe.stage import Options
from training.wardrobe.tokenizer import check_tokenizer, draw_copies, read_tokenizer

RATIO = 1.333


def agreeing(seen: Sequence[str], wanted: Sequence[str]) -> list[bool]:
    """Whether each label that is seen is the one that is wanted."""
    return [own == other for own, other in zip(seen, wanted, strict=True)]


def colour_verdicts(pictures: Tensor, wanted: list[Description]) -> tuple[float, float]:
    """Shares of pictures whose main colour is the caption's first, and that show it as first or second."""
    fine = F.interpolate(pictures, size=(FINE, FINE), mode="area")
    first, second, _ = Measurer.of(fine).colours()
    exact = [COLOURS[a] == item.first for a, item in zip(first.tolist(), wanted, strict=True)]
    shown = [
        item.first in (COLOURS[a], COLOURS[b] if b >= 0 else "")
        for a, b, item in zip(first.tolist(), second.tolist(), wanted, strict=True)
    ]
    return sum(exact) / len(exact), sum(shown) / len(shown)


def draw(pipeline: Pipeline, captions: list[str], seed: int, **settings: Any) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] of captions, 3:4, each with a seed of its own."""
    parts = []
    for start in range(0, len(captions), 8):
        part = captions[start : start + 8]
        seeds = [seed + start + place for place in range(len(part))]
        drawn = pipeline(part, seed=seeds, aspect_ratio="3:4", output_type="pt", **settings).images
        parts.append(torch.stack(list(drawn)).float().cpu())
    return torch.cat(parts)


def chosen(source: Captioned, count: int, seed: int) -> list[tuple[int, Description]]:
    """Held-out photographs and what their captions say, at random; those of label "Other" name no garment."""
    index = source.photographs.where(True).tolist()
    random.Random(seed).shuffle(index)
    found = [(place, source.description(place)) for place in index]
    return [(place, item) for place, item in found if item.label != "Other"][:count]


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; sheets are written beside the model."""
    torch.manual_seed(0)
    preset, device = PRESETS[arguments.preset], torch.device(arguments.device)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    options = Options(preset, arguments.photographs, out, 0.0, device)
    photographs = read_photographs([arguments.photographs], device, arguments.most)
    pipeline = None if arguments.model is None else Pipeline.from_pretrained(arguments.model, device=device)
    tokenizer = read_tokenizer(options, arguments.tokenizer) if pipeline is None else pipeline.model.tokenizer
    found: dict[str, Any] = {"tokenizer": check_tokenizer(tokenizer, photographs, options)}
    draw_copies(tokenizer, photographs, options)
    print(json.dumps(found), flush=True)
    if pipeline is None:
        return found
    source = Captioned(photographs, preset)
    items = chosen(source, arguments.count, arguments.seed)
    captions = [caption(item) for _, item in items]
    drawn = draw(pipeline, captions, arguments.seed, **arguments.settings)
    wanted = [item for _, item in items]
    found["colour_first"], found["colour_shown"] = colour_verdicts(drawn, wanted)
    rows = [list(drawn[start : start + 8]) for start in range(0, min(64, len(drawn)), 8)]
    titles = [captions[start : start + 8] for start in range(0, min(64, len(drawn)), 8)]
    sheet(out / "drawn.png", rows, titles, side=192)
    print(json.dumps(found), flush=True)
    found |= probe_and_neighbours(source, drawn, items, out)
    found |= {"info": provenance(device, command_line("wardrobe.evaluate"))}
    found |= {"captions": len(captions), "settings": arguments.settings, "seed": arguments.seed}
    (out / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def probe_and_neighbours(
    source: Captioned, drawn: Tensor, items: list[tuple[int, Description]], out: Path
) -> dict[str, Any]:
    """The probe's verdicts, on held-out photographs as a bound, and the training photographs nearest to 32 pictures."""
    photographs, size = source.photographs, source.preset.size(RATIO)
    network = load_lite0().to(photographs.pixels.device)
    train, held = photographs.where(False), photographs.where(True)

    def labels(index: Tensor) -> list[str]:
        return [photographs.facts[place].label for place in index.tolist()]

    known = features_of(photographs, train, size, network)
    probe = Probe.fit(known, labels(train))
    real = fmean(agreeing(probe.read(features_of(photographs, held, size, network)), labels(held)))
    mine = features(drawn.to(photographs.pixels.device), network).cpu()
    wanted = [item.label for _, item in items]
    right = agreeing(probe.read(mine), wanted)
    by_label = {
        name: round(fmean(hit for hit, label in zip(right, wanted, strict=True) if label == name), 2)
        for name in sorted(set(wanted))
    }
    near = F.normalize(mine[:32], dim=1) @ F.normalize(known, dim=1).T
    best = near.topk(3, dim=1)
    rows = []
    for start in range(0, min(32, len(drawn)), 4):
        row: list[Tensor] = []
        for place in range(start, min(start + 4, len(drawn), 32)):
            row += [drawn[place], *whole_photographs(photographs, train[best.indices[place]], size)]
        rows.append(row)
    sheet(out / "neighbours.png", rows, side=128)
    return {
        "garment_right": fmean(right),
        "garment_right_on_photographs": real,
        "by_label": by_label,
        "nearest_similarity": round(float(best.values[:, 0].mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="model folder")
    what.add_argument("--tokenizer", type=Path, help="weights of a tokenizer, which alone is looked at")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and sheets")
    parser.add_argument("--count", type=int, default=128, help="captions to draw")
    parser.add_argument("--most", type=int, help="read no more photographs than this")
    parser.add_argument("--settings", type=json.loads, default={}, help='such as {"guidance_scale": 2}')
    parser.add_argument("--preset", choices=PRESETS, default="wardrobe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(evaluate(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
