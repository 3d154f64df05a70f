"""The images of the documentation of videos: ``python -m benchmarks.figures_video``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stepvar.evaluation.scenes.clips.grammar import clip_caption, held_out_clips
from stepvar.media.images import save_image
from stepvar.media.sheets import contact_sheet
from stepvar.media.video import Video
from stepvar.methods import StepVAR
from stepvar.pipeline import Pipeline

IMAGES = Path(__file__).parent.parent / "docs" / "images"
CAPTION = "a red striped ball rolling right on grass"
SEED = 7
FRAMES = 5


def strip(video: Video, count: int = FRAMES) -> Image.Image:
    """Frames side by side, evenly spread from the first to the last."""
    images = video.images()
    width, height = video.size
    found = Image.new("RGB", (count * width, height))
    for place in range(count):
        found.paste(images[round(place * (len(images) - 1) / (count - 1))], (place * width, 0))
    return found


def sheet(tiles: Sequence[tuple[str, Video]], columns: int, heading: Sequence[str]) -> Image.Image:
    return contact_sheet([(label, strip(video)) for label, video in tiles], columns, heading)


def samples(pipe: Pipeline) -> Image.Image:
    """The first held-out captions as they come, none chosen."""
    clips = held_out_clips(8, seed=3)
    captions = [clip_caption(clip) for clip in clips]
    videos = pipe(captions, seed=list(range(100, 100 + len(clips)))).videos
    return sheet(list(zip(captions, videos, strict=True)), 2, ["held-out captions, dense, as they come"])


def rivals(pipe: Pipeline) -> Image.Image:
    """The same seed, dense and with half of the late tokens pruned."""
    tiles = [("dense", pipe(CAPTION, seed=SEED).videos[0])]
    tiles += [
        (f"stepvar, keep {keep}", pipe(CAPTION, seed=SEED, method=StepVAR(keep=keep)).videos[0]) for keep in (0.5, 0.25)
    ]
    return sheet(tiles, 1, [CAPTION, "the same seed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes-video")
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    pipe = Pipeline.from_pretrained(given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    info = {"model": pipe.name, "prompt": CAPTION, "seed": str(SEED)}
    save_image(samples(pipe), given.out / "scenes-video.png", info)
    save_image(rivals(pipe), given.out / "scenes-video-methods.png", info)
    pipe(CAPTION, seed=SEED).videos[0].save(given.out / "ball.gif", metadata=info)


if __name__ == "__main__":
    main()
