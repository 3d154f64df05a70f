from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepvar.errors import CheckpointError
from stepvar.evaluation.scenes.grammar import BACKGROUNDS, Scene, SceneObject, held_out_scenes
from stepvar.evaluation.scenes.judge import RELATION_SLOTS, WORDS, Judge
from training import judge as recipe
from training.degrade import degrade
from training.verdicts import ATTRIBUTES, judge_scene, judge_scenes

RED = SceneObject("circle", "red", "striped", "large")
BLUE = SceneObject("star", "blue", "plain", "small")
PAIR = Scene((RED, BLUE), "left of", "grass")
SINGLE = Scene((RED,), None, "sand")


def seen(scene: Scene) -> dict[str, Tensor]:
    """Logits of a judge that sees exactly this scene; undefined slots show nothing known."""
    logits = {name: torch.zeros(1, 4, len(words)) for name, words in WORDS.items()}
    slots: Sequence[int] = range(4) if len(scene.objects) == 1 else RELATION_SLOTS[str(scene.relation)]
    for index, slot in enumerate(slots):
        item = scene.objects[index % len(scene.objects)]
        for name, words in WORDS.items():
            logits[name][0, slot, words.index(getattr(item, name))] = 5.0
    logits["background"] = torch.zeros(1, len(BACKGROUNDS))
    logits["background"][0, BACKGROUNDS.index(str(scene.background))] = 5.0
    logits["count"] = torch.tensor([[5.0, 0.0] if len(scene.objects) == 1 else [0.0, 5.0]])
    logits["place"] = torch.zeros(1, 4, 2)
    if len(scene.objects) == 2:
        horizontal = scene.relation in ("left of", "right of")
        low, high = (0, 1) if horizontal else (2, 3)
        logits["place"][0, low, 0 if horizontal else 1] = -0.3
        logits["place"][0, high, 0 if horizontal else 1] = 0.3
    return logits


@pytest.mark.parametrize(("height", "width"), [(128, 128), (256, 256), (64, 96), (200, 120)])
def test_forward_has_the_documented_shapes(height: int, width: int) -> None:
    with torch.no_grad():
        logits = Judge().eval()(torch.rand(2, 3, height, width) * 2 - 1)
    assert {name: tuple(logits[name].shape) for name in WORDS} == {
        name: (2, 4, len(words)) for name, words in WORDS.items()
    }
    assert logits["background"].shape == (2, len(BACKGROUNDS))
    assert logits["count"].shape == (2, 2)
    assert logits["place"].shape == (2, 4, 2)
    total = logits["attention"].exp().sum((2, 3))
    torch.testing.assert_close(total, torch.ones(2, 4))
    assert min(logits["attention"].shape[2:]) == 16


def test_the_judge_is_small_and_refuses_other_inputs() -> None:
    judge = Judge()
    assert sum(value.numel() for value in judge.parameters()) <= 600_000
    with pytest.raises(ValueError, match="images"):
        judge(torch.zeros(3, 64, 64))


@pytest.mark.parametrize("relation", list(RELATION_SLOTS))
def test_a_right_image_is_right_in_everything(relation: str) -> None:
    scene = replace(PAIR, relation=relation)
    verdict = judge_scene(seen(scene), scene)
    assert set(verdict) == set(ATTRIBUTES)
    assert all(value is True for value in verdict.values())


def test_a_single_object_has_no_binding() -> None:
    verdict = judge_scene(seen(SINGLE), SINGLE)
    of_pairs = ("colour_binding", "texture_binding", "size_binding", "objects")
    assert all(verdict[name] is None for name in of_pairs)
    assert all(value for name, value in verdict.items() if name not in of_pairs)


def test_exchanged_objects_fail_the_binding_only() -> None:
    verdict = judge_scene(seen(PAIR), replace(PAIR, relation="right of"))
    assert verdict["colour_binding"] is False and verdict["objects"] is False and verdict["everything"] is False
    assert all(verdict[name] for name in ("shape", "colour", "texture", "size", "count", "background"))


def test_exchanged_textures_fail_the_texture_and_its_binding() -> None:
    mixed = replace(PAIR, objects=(replace(RED, texture=BLUE.texture), replace(BLUE, texture=RED.texture)))
    verdict = judge_scene(seen(mixed), PAIR)
    wrong = {name for name, right in verdict.items() if not right}
    assert wrong == {"texture", "texture_binding", "everything"}


def test_exchanged_colours_fail_the_colour_and_its_binding() -> None:
    mixed = replace(PAIR, objects=(replace(RED, colour="blue"), replace(BLUE, colour="red")))
    verdict = judge_scene(seen(mixed), PAIR)
    assert verdict["shape"] and verdict["texture"] and verdict["size"]
    assert verdict["colour"] is False and verdict["colour_binding"] is False and verdict["objects"] is False


def test_a_wrong_shape_fails_objects_but_not_the_colour_binding() -> None:
    verdict = judge_scene(seen(replace(PAIR, objects=(replace(RED, shape="ring"), BLUE))), PAIR)
    assert verdict["shape"] is False and verdict["objects"] is False
    assert verdict["colour_binding"] is True


def test_without_a_relation_either_order_will_do() -> None:
    asked = Scene((BLUE, RED), None, "grass")
    for relation in RELATION_SLOTS:
        verdict = judge_scene(seen(replace(PAIR, relation=relation)), asked)
        assert all(verdict.values())


def test_unspoken_attributes_are_not_judged() -> None:
    vague = Scene((replace(RED, size=None, colour=None), replace(BLUE, size=None, colour=None)), "left of")
    verdict = judge_scene(seen(PAIR), vague)
    assert verdict["size"] is None and verdict["colour"] is None and verdict["background"] is None
    assert verdict["colour_binding"] is None and verdict["objects"] is True


def test_count_and_background_can_be_wrong() -> None:
    verdict = judge_scene(seen(PAIR), SINGLE)
    assert verdict["count"] is False and verdict["background"] is False


def test_judge_scenes_reads_a_batch() -> None:
    both = [seen(PAIR), seen(SINGLE)]
    logits = {name: torch.cat([one[name] for one in both]) for name in both[0]}
    assert judge_scenes(logits, [PAIR, SINGLE]) == [
        judge_scene(seen(PAIR), PAIR),
        judge_scene(seen(SINGLE), SINGLE),
    ]
    with pytest.raises(ValueError, match="as many"):
        judge_scenes(logits, [PAIR])


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge().eval()
    images = torch.rand(2, 3, 128, 128) * 2 - 1
    judge.save(tmp_path / "exact.safetensors", dtype=torch.float32)
    judge.save(tmp_path / "half.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact.safetensors", "half.safetensors"]
    assert (tmp_path / "half.safetensors").stat().st_size < 1_100_000
    with torch.no_grad():
        expected = judge(images)
        exact = Judge.load(tmp_path / "exact.safetensors")(images)
        half = Judge.load(tmp_path / "half.safetensors")(images)
    for name, value in expected.items():
        torch.testing.assert_close(exact[name], value)
        torch.testing.assert_close(half[name], value, rtol=0.02, atol=0.02)


def test_load_refuses_what_is_not_a_judge(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError):
        Judge.load(tmp_path / "absent.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"not a weight file")
    with pytest.raises(CheckpointError):
        Judge.load(tmp_path / "noise.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a judge"):
        Judge.load(tmp_path / "other.safetensors")


def test_degraded_images_keep_their_shape_and_range() -> None:
    torch.manual_seed(0)
    images = torch.rand(12, 3, 48, 72) * 2 - 1
    damaged = degrade(images)
    assert damaged.shape == images.shape
    assert damaged.min() >= -1.0 and damaged.max() <= 1.0
    assert not torch.equal(damaged, images)


def test_labels_put_objects_into_the_slots_of_their_relation() -> None:
    scenes = [PAIR, replace(PAIR, relation="below"), SINGLE]
    batch = recipe.make_batch(scenes, [1, 2, 3], (64, 64), torch.device("cpu"))
    assert batch.spoken.tolist() == [[True, True, False, False], [False, False, True, True], [True] * 4]
    colours = batch.words[..., list(WORDS).index("colour")]
    red, blue = WORDS["colour"].index("red"), WORDS["colour"].index("blue")
    assert colours[0, :2].tolist() == [red, blue]
    assert colours[1, 2:].tolist() == [blue, red]
    assert colours[2].tolist() == [red] * 4
    assert batch.places[0, 0, 0] < batch.places[0, 1, 0]
    assert batch.places[1, 2, 1] < batch.places[1, 3, 1]


def test_training_runs_resumes_and_reports(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--size", "48", "--batch", "8", "--samples", "16"]
    assert recipe.main([*arguments, "--minutes", "0.01"]) == 0
    first = json.loads((tmp_path / "judge.json").read_text())
    assert recipe.main([*arguments, "--minutes", "0.02", "--resume"]) == 0
    second = json.loads((tmp_path / "judge.json").read_text())
    assert second["steps"] > first["steps"] >= 1
    assert second["samples"] == 16
    assert {"background", "object_texture_large", "objects"} <= set(second["accuracy"])
    assert all(0.0 <= value <= 1.0 for value in second["accuracy"].values())
    scenes = held_out_scenes(2)
    Judge.load(tmp_path / "judge.safetensors")(torch.zeros(len(scenes), 3, 64, 64))


def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    scenes = held_out_scenes(4)
    batch = recipe.make_batch(scenes, range(4), (64, 64), torch.device("cpu"))
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = recipe.loss_of(judge(batch.images), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
