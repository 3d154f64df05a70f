"""The video model that ships with the package."""

import pytest
import torch

from stepvar import Pipeline
from stepvar.evaluation.metrics.scenes import judge_videos, load_clip_judge
from stepvar.evaluation.scenes.clips.judge import ClipJudge
from stepvar.evaluation.scenes.clips.render import render_clips
from training.video.captions import parse_clip

CAPTIONS = [
    f"a large red ball moving {side} quickly on {place}" for side in ("left", "right") for place in ("grass", "snow")
]


def test_it_loads_and_its_length_is_two_seconds() -> None:
    pipe = Pipeline.from_pretrained("scenes-video")
    assert pipe.name == "scenes-video" and pipe.schedule().grids[-1].shape == (4, 12, 12)
    assert pipe.text_encoder is not None
    assert set(pipe.text_encoder.encode(["a red striped ball rolling right on grass"]).lengths) == {9}


def test_its_judge_reads_renders() -> None:
    judge = load_clip_judge()
    assert isinstance(judge, ClipJudge)
    clips = [clip for clip in map(parse_clip, CAPTIONS) if clip is not None]
    videos = (render_clips(clips, range(4), 17, 96, 96) + 1) / 2
    assert all(verdict["everything"] for verdict in judge_videos(judge, videos, clips))


@pytest.mark.slow
def test_it_generates_what_moves_where_its_caption_says() -> None:
    pipe, judge = Pipeline.from_pretrained("scenes-video"), load_clip_judge()
    clips = [clip for clip in map(parse_clip, CAPTIONS) if clip is not None]
    videos = pipe(CAPTIONS, seed=1, output_type="pt").videos
    assert videos.shape == (4, 3, 17, 96, 96) and bool(torch.isfinite(videos).all())
    verdicts = judge_videos(judge, videos, clips)
    assert all(verdict["background"] for verdict in verdicts)
    assert sum(bool(verdict["motion"]) for verdict in verdicts) >= 3
