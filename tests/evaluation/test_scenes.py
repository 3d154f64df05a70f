"""The judge's verdicts on the device are those of the rules for one image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepvar.evaluation.metrics.scenes import CATEGORIES, Questions, Scenes, decode_features, domain_of
from stepvar.evaluation.prompts import Prompt
from stepvar.evaluation.scenes.grammar import BACKGROUNDS, Scene, SceneObject, held_out_scenes
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
                    logits[name][row, slots, word] += 0.5 if name == "size" else 1.5  # of two words a guess hits often
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
            "size": verdict["size"] if single else None,
            "texture binding": verdict["texture_binding"],
            "size binding": verdict["size_binding"],
            "background": verdict["background"],
            "everything": verdict["everything"],
        }
        for column, name in enumerate(CATEGORIES):
            assert bool(asked[row, column]) == (wanted[name] is not None), name
            if wanted[name] is not None:
                assert bool(right[row, column]) == wanted[name], (name, scene)
    shares = (right & asked).sum(0) / asked.sum(0)
    assert (shares > 0.05).all() and (shares < 0.995).all()


PAIR = Scene(
    (SceneObject("circle", "red", "striped", "small"), SceneObject("star", "blue", "dotted", "large")), "above", "snow"
)


def seen(first: SceneObject, second: SceneObject, background: str = "snow", count: int = 2) -> dict[str, torch.Tensor]:
    """Logits of a judge that sees two objects, the first above the second."""
    logits = {name: torch.zeros(1, len(SLOTS), len(words)) for name, words in WORDS.items()}
    for slot, item in ((2, first), (3, second)):
        for name, words in WORDS.items():
            logits[name][0, slot, words.index(getattr(item, name))] = 1
    logits["background"] = torch.eye(len(BACKGROUNDS))[[BACKGROUNDS.index(background)]]
    return logits | {"count": torch.eye(2)[[count - 1]]}


def verdict_on(logits: dict[str, torch.Tensor], scene: Scene = PAIR) -> dict[str, bool]:
    return dict(zip(CATEGORIES, Questions.of([scene]).right(logits)[0].tolist(), strict=True))


def test_everything_asks_for_each_attribute_of_both_objects_at_its_place() -> None:
    first, second = PAIR.objects
    assert all(verdict_on(seen(first, second))[name] for name in ("everything", "texture binding", "size binding"))
    plain = verdict_on(seen(first, replace(second, texture="plain")))
    assert (plain["texture binding"], plain["size binding"], plain["everything"]) == (False, True, False)
    small = verdict_on(seen(first, replace(second, size="small")))
    assert (small["texture binding"], small["size binding"], small["everything"]) == (True, False, False)
    turned = verdict_on(seen(second, first))
    assert turned["two objects"] and not turned["position"] and not turned["everything"]
    assert not verdict_on(seen(first, second, background="sky"))["everything"]
    assert not verdict_on(seen(first, second, count=1))["everything"]
    silent = replace(PAIR, objects=(first, replace(second, texture=None)), background=None)
    assert verdict_on(seen(first, replace(second, texture="plain"), background="sky"), silent)["everything"]


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
