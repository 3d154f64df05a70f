"""The judge's verdicts on the device are those of the rules for one image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.evaluation.metrics.scenes import CATEGORIES, Questions, Scenes, decode_features, domain_of
from stepvar.evaluation.prompts import Prompt
from stepvar.evaluation.scenes.grammar import Scene, held_out_scenes
from stepvar.evaluation.scenes.judge import SLOTS, WORDS
from training.verdicts import judge_scenes

CPU = torch.device("cpu")


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
    prompts = [Prompt(f"{i}", "", scene=scene) for i, scene in enumerate(held_out_scenes(24, seed=11))]
    domain = domain_of(prompts, CPU)
    assert isinstance(domain, Scenes)
    renders = domain.render(prompts, list(range(24)), torch.empty(24, 1, 3, 128, 128))
    rows = domain.judge(prompts, renders)
    verdicts = [seen for row in rows for seen in row["right"].values()]
    assert sum(verdicts) / len(verdicts) > 0.95 and all("background" in row["right"] for row in rows)
    features = decode_features([row["features"] for row in rows])
    assert features.shape == (24, 96) and torch.isfinite(features).all()


def test_other_prompts_have_no_judge() -> None:
    assert domain_of([Prompt("0", "a scene", scene=held_out_scenes(1)[0]), Prompt("1", "anything")], CPU) is None
