"""Prompts from the four sources, and where their pictures go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepvar.errors import UsageError
from stepvar.evaluation.prompts import load_prompts
from stepvar.evaluation.scenes.clips.grammar import clip_caption, is_held_out_clip
from stepvar.evaluation.scenes.grammar import caption, is_held_out

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


def test_scenes_are_held_out_and_say_what_they_show() -> None:
    found = load_prompts("scenes:10")
    assert len(found) == 10 and found.layout == "plain"
    for prompt in found.prompts:
        assert prompt.scene is not None and is_held_out(prompt.scene) and prompt.text == caption(prompt.scene)
    assert {prompt.category for prompt in found.prompts} == {"one object", "two objects"}
    assert len(load_prompts("scenes")) == 128
    assert found.limited(3).prompts == found.prompts[:3] and found.limited(None).prompts == found.prompts


def test_clips_are_held_out_and_say_what_they_show() -> None:
    found = load_prompts("scenes-video:10")
    assert len(found) == 10 and found.source == "scenes-video:10"
    for prompt in found.prompts:
        assert prompt.clip is not None and is_held_out_clip(prompt.clip) and prompt.text == clip_caption(prompt.clip)
        assert prompt.scene is None and prompt.category == prompt.clip.motion


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n\n  a dog  \n", encoding="utf-8")
    found = load_prompts(str(tmp_path / "mine.txt"))
    assert [(p.name, p.text) for p in found.prompts] == [("00000", "a cat"), ("00001", "a dog")]
    assert found.image(1, 2) == Path("00001/0002.png")


def test_geneval(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)) + "\n", encoding="utf-8")
    found = load_prompts(str(file))
    assert found.layout == "geneval" and [p.category for p in found.prompts] == ["single_object", "colors"]
    assert json.loads(found.prompts[1].metadata) == LINES[1]
    assert found.image(1, 3) == Path("00001/samples/0003.png")
    file.write_text('{"tag": "colors"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="line 1 has no 'prompt'"):
        load_prompts(str(file))


def test_lines_with_a_category_are_laid_out_plainly(tmp_path: Path) -> None:
    file = tmp_path / "kinds.jsonl"
    lines = [{"prompt": "a hat", "category": "smooth"}, {"prompt": "a rug", "category": "textured"}, {"prompt": "a"}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    found = load_prompts(str(file))
    assert found.layout == "plain" and [p.category for p in found.prompts] == ["smooth", "textured", ""]
    assert found.image(0, 0) == Path("00000/0000.png")
    file.write_text('{"prompt": "a hat", "category": "x", "tag": "colors"}\n', encoding="utf-8")
    both = load_prompts(str(file))
    assert both.layout == "geneval" and both.prompts[0].category == "colors"
    assert both.digest != found.digest


def test_dpg(tmp_path: Path) -> None:
    (tmp_path / "vrd1.txt").write_text("a street\n", encoding="utf-8")
    (tmp_path / "coco7.txt").write_text("a kitchen", encoding="utf-8")
    found = load_prompts(str(tmp_path))
    assert found.layout == "dpg" and [(p.name, p.text) for p in found.prompts] == [
        ("coco7", "a kitchen"),
        ("vrd1", "a street"),
    ]


def test_refusals(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    for source, message in (
        ("nowhere.txt", "no such file or folder"),
        (str(empty), "no prompts, or an empty one"),
        ("scenes:many", "give a number behind the colon"),
        ("scenes:0", "between 1 and 4096"),
    ):
        with pytest.raises(UsageError, match=message):
            load_prompts(source)
    with pytest.raises(UsageError, match="limit=0"):
        load_prompts("scenes").limited(0)
