"""The judge's verdicts on the device are those of the rules for one picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.evaluation.scene_scores import CATEGORIES, Questions, judge_batch, load_judge
from stepvar.evaluation.scenes.grammar import Scene, held_out_scenes
from stepvar.evaluation.scenes.judge import SLOTS, WORDS, judge_scenes
from stepvar.evaluation.scenes.render import render


def random_logits(scenes: list[Scene], seed: int) -> dict[str, torch.Tensor]:
    """Logits that lean towards what the scenes say, so that right and wrong answers both occur."""
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, ...]] = {name: (len(scenes), len(SLOTS), len(words)) for name, words in WORDS.items()}
    sizes |= {"background": (len(scenes), 9), "count": (len(scenes), 2), "place": (len(scenes), len(SLOTS), 2)}
    logits = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    wanted = Questions.of(scenes)
    for column, name in enumerate(WORDS):
        for row in range(len(scenes)):
            for place in range(2):
                word = int(wanted.wanted[row, place, column])
                if word >= 0:
                    slots = wanted.slots[row, place] if bool(wanted.pair[row]) else slice(None)
                    logits[name][row, slots, word] += 1.5
    logits["background"].scatter_add_(1, wanted.background[:, None], torch.full((len(scenes), 1), 1.5))
    logits["count"].scatter_add_(1, wanted.pair.long()[:, None], torch.full((len(scenes), 1), 1.0))
    return logits


@pytest.mark.parametrize("seed", [0, 1])
def test_categories_are_the_judges_rules(seed: int) -> None:
    scenes = held_out_scenes(120, seed=seed)
    logits = random_logits(scenes, seed)
    verdicts = judge_scenes(logits, scenes)
    plain = [
        replace(s, objects=tuple(replace(o, colour=None, texture=None, size=None) for o in s.objects)) for s in scenes
    ]
    shapes = judge_scenes(logits, plain)
    questions = Questions.of(scenes)
    asked, right = questions.asked, questions.right(logits)
    for row, scene in enumerate(scenes):
        verdict, single = verdicts[row], len(scene.objects) == 1
        wanted = {
            "single object": verdict["count"] and verdict["shape"] if single else None,
            "two objects": None if single else verdict["count"] and verdict["shape"],
            "colours": verdict["colour"] if single else None,
            "position": None if single else shapes[row]["objects"],
            "colour binding": verdict["colour_binding"],
            "texture": verdict["texture"] if single else None,
            "background": verdict["background"],
        }
        for column, name in enumerate(CATEGORIES):
            assert bool(asked[row, column]) == (wanted[name] is not None), name
            if wanted[name] is not None:
                assert bool(right[row, column]) == wanted[name], (name, scene)
    shares = (right & asked).sum(0) / asked.sum(0)
    assert (shares > 0.05).all() and (shares < 0.995).all()


def test_real_renders_are_right() -> None:
    scenes = held_out_scenes(24, seed=11)
    pictures = (render(scenes, list(range(24)), 128, 128) + 1) / 2
    judged = judge_batch(load_judge(), pictures, Questions.of(scenes))
    asked = Questions.of(scenes).asked
    assert float((judged.right & asked).sum() / asked.sum()) > 0.95
    assert judged.features.shape == (24, 96) and torch.isfinite(judged.features).all()
