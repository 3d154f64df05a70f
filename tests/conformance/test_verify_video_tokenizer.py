"""Goldens of InfinityStar's video tokenizer must fail when anything is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stepvar.conformance.golden import find_goldens
from stepvar.conformance.infinity_star import build_tokenizer, published_frames, read_code_passes
from stepvar.errors import CheckpointError
from tests.conformance.files import GOLDENS, copy, edit, run


@pytest.mark.parametrize(
    "settings",
    [{"detail_scale_min_tokens": 25}, {"image_scale_repetition": [1, 2, 2, 2]}, {"vae_layers_per_block": 1}],
    ids=str,
)
def test_other_settings_are_found(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert run(copy(tmp_path, "istar_video_encode", **settings)).status == "fail"


def test_other_weights_are_found(tmp_path: Path) -> None:
    assert run(edit(copy(tmp_path, "istar_video_encode"), seed=1)).errors["hidden"] > 0.1


def test_weights_are_those_of_the_list_beside_it(tmp_path: Path) -> None:
    path = copy(tmp_path, "istar_video_encode")
    own = build_tokenizer(find_goldens([path])[0]).state_dict()
    listed: list[Any] = [[name, list(weight.shape)] for name, weight in own.items()]
    (tmp_path / "istar_params.json").write_text(json.dumps({"vae_params": listed}))
    assert run(path).passed
    listed[5][0] += "2"
    (tmp_path / "istar_params.json").write_text(json.dumps({"vae_params": listed}))
    assert "does not fit the model; 1 missing" in run(path).notes[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_codes_what_is_stored(dtype: torch.dtype) -> None:
    result = run("istar_video_encode", dtype=dtype)
    assert result.passed and result.errors["hidden"] > 1e-4 and result.differing == {"bits": 0}


def test_clips_are_cut_where_frames_are_full() -> None:
    golden = find_goldens([GOLDENS["istar_video_encode"]])[0]
    image, video = read_code_passes(golden)
    assert [(str(grid), bits) for grid, bits in image[::2]] == [("1x1", 16), ("2x2", 16), ("3x4", 64), ("4x6", 64)]
    assert len(image) == 8 and len(video) == 7 and {grid.t for grid, _ in video} == {4}


def test_channels_of_no_published_tokenizer_are_named(tmp_path: Path) -> None:
    path = copy(tmp_path, "istar_video_encode", vae_channels=[8, 16, 32, 32, 16])
    with pytest.raises(CheckpointError, match="the last two of them equal"):
        build_tokenizer(find_goldens([path])[0])


def test_published_frames_repeat_the_second_and_turn_colours_round() -> None:
    video = torch.zeros(1, 3, 3, 1, 1)
    video[0, :, 0], video[0, :, 1] = 1.0, torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1)
    frames = published_frames(video)
    assert frames.shape == (1, 3, 1, 1, 3) and frames.dtype == torch.uint8
    assert frames[0, :, 0, 0].tolist() == [[255, 127, 0], [255, 127, 0], [127, 127, 127]]
