from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepvar.errors import CheckpointError, UsageError
from stepvar.evaluation.metrics.scenes import judge_videos
from stepvar.evaluation.scenes.clips.grammar import MOTIONS, Clip, sample_clip
from stepvar.evaluation.scenes.clips.judge import (
    ATTRIBUTES,
    FRAMES,
    HEADS,
    ClipJudge,
    judge_clips,
    watched,
    words_of,
)
from stepvar.evaluation.scenes.clips.render import clip_paths, render_clips
from stepvar.evaluation.scenes.judge import Judge
from training.video.captions import parse_clip
from training.video.judge import UNSPOKEN, damaged, labels_of, loss_of


def clips_of(count: int) -> list[Clip]:
    rng = random.Random(0)
    return [sample_clip(rng) for _ in range(count)]


def logits_that_say(clips: list[Clip]) -> dict[str, torch.Tensor]:
    logits = {name: torch.zeros(len(clips), words) for name, words in HEADS.items()}
    for row, clip in enumerate(clips):
        for name, word in words_of(clip).items():
            logits[name][row, 0 if word is None else word] = 1.0
    return logits


def test_right_answers_are_right_and_each_wrong_one_is_wrong() -> None:
    clips = clips_of(40)
    assert all(verdict["everything"] for verdict in judge_clips(logits_that_say(clips), clips))
    for name in HEADS:
        logits = logits_that_say(clips)
        logits[name] = logits[name].roll(1, dims=1)
        for verdict in judge_clips(logits, clips):
            wrong = [other for other in HEADS if verdict[other] is False]
            assert wrong == ([name] if verdict[name] is not None else [])
            assert verdict["everything"] is (verdict[name] is None)


def test_what_is_not_spoken_of_is_not_judged() -> None:
    spoken = parse_clip("a star falling")
    assert spoken is not None
    verdict = judge_clips(logits_that_say([spoken]), [spoken])[0]
    assert {name for name in ATTRIBUTES if verdict[name] is None} == {
        "colour",
        "size",
        "background",
        "speed",
        "rolling",
    }


def test_rolling_is_only_asked_of_what_shows_it() -> None:
    ball = parse_clip("a large red ball rolling right on grass")
    assert ball is not None
    striped = replace(ball, item=replace(ball.item, texture="striped"))
    assert words_of(ball)["rolling"] is None
    assert words_of(striped)["rolling"] == 1
    assert words_of(replace(striped, rolling=False))["rolling"] == 0
    assert words_of(replace(striped, rolling=False, motion="up"))["rolling"] is None
    assert labels_of([ball])[0, list(HEADS).index("rolling")] == UNSPOKEN


@pytest.mark.parametrize(("frames", "height", "width"), [(17, 96, 96), (9, 48, 64), (5, 40, 32)])
def test_the_judge_reads_clips_of_any_size(frames: int, height: int, width: int) -> None:
    judge = ClipJudge().eval()
    clips = clips_of(2)
    logits = judge(render_clips(clips, [1, 2], frames, height, width))
    assert {name: tuple(logits[name].shape) for name in HEADS} == {name: (2, words) for name, words in HEADS.items()}
    torch.testing.assert_close(logits["attention"].exp().sum((2, 3)), torch.ones(2, FRAMES))
    assert len(judge_videos(judge, torch.rand(3, 3, frames, height, width), clips_of(3), batch=2)) == 3


def test_the_frames_that_the_judge_sees_are_those_of_a_shorter_render() -> None:
    clips = clips_of(3)
    long, short = (render_clips(clips, range(3), frames, 32, 32) for frames in (17, FRAMES))
    torch.testing.assert_close(watched(long), watched(short), atol=1e-4, rtol=0)


def test_a_few_steps_teach_it_directions() -> None:
    torch.manual_seed(0)
    judge = ClipJudge().train()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    base = parse_clip("a large red ball moving left quickly on snow")
    assert base is not None
    clips = [replace(base, motion=motion) for motion in MOTIONS[:4]] * 2
    videos = render_clips(clips, range(8), FRAMES, 48, 48)
    places, labels = clip_paths(clips, range(8), FRAMES, 48, 48), labels_of(clips)
    losses = []
    for _ in range(20):
        loss, parts = loss_of(judge(videos), labels, places, (48, 48))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(parts[list(HEADS).index("motion")].item())
    # Less than what knowing that there are four directions would leave.
    assert losses[-1] < 0.9 * math.log(4)


def test_damage_keeps_the_shape_and_differs_from_frame_to_frame() -> None:
    torch.manual_seed(0)
    still = torch.zeros(8, 3, 5, 32, 32)
    hurt = damaged(still)
    assert hurt.shape == still.shape
    assert hurt.diff(dim=2).abs().mean() > 0.005


def test_a_judge_is_stored_and_refuses_other_files(tmp_path: Path) -> None:
    judge = ClipJudge().eval()
    judge.save(tmp_path / "judge.safetensors", torch.float32)
    again = ClipJudge.load(tmp_path / "judge.safetensors")
    videos = torch.rand(1, 3, 5, 32, 32)
    torch.testing.assert_close(again(videos)["motion"], judge(videos)["motion"])
    Judge().save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="stepvar-clip-judge-1"):
        ClipJudge.load(tmp_path / "other.safetensors")


def test_other_inputs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(B, 3, T, H, W\)"):
        ClipJudge()(torch.rand(2, 3, 32, 32))
    with pytest.raises(UsageError, match="give as many"):
        judge_clips(logits_that_say(clips_of(2)), clips_of(3))
