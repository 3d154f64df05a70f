"""What is right in an image of a scene, attribute by attribute, by what the judge sees in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from stepvar.errors import UsageError
from stepvar.evaluation.scenes.grammar import BACKGROUNDS, Scene, SceneObject
from stepvar.evaluation.scenes.judge import RELATION_SLOTS, WORDS, Judge

ATTRIBUTES: tuple[str, ...] = (
    "background", "count", *WORDS, "colour_binding", "texture_binding", "size_binding", "objects", "everything",
)  # fmt: skip
"""The keys of :func:`judge_scene`."""


def judge_scene(logits: Mapping[str, Tensor], scene: Scene, index: int = 0) -> dict[str, bool | None]:
    """Compare image ``index`` of a batch of logits of :class:`Judge` to the scene that was asked for.

    Keys are :data:`ATTRIBUTES`; ``None`` where the scene does not speak of it. ``shape``, ``colour``,
    ``texture`` and ``size`` are right when they are right for every object, the objects taken in the
    order that fits best. For two objects, ``colour_binding`` is right when each object's place has its
    colour, likewise ``texture_binding`` and ``size_binding``, and ``objects`` when each place has its colour
    and its shape; a scene without a relation takes them in either order. ``everything`` is right when the
    count, the background and all attributes at their places are.
    """
    count = len(scene.objects)
    verdict: dict[str, bool | None] = dict.fromkeys(ATTRIBUTES)
    verdict["count"] = int(logits["count"][index].argmax()) + 1 == count
    if scene.background is not None:
        verdict["background"] = BACKGROUNDS[int(logits["background"][index].argmax())] == scene.background
    stated = _stated_order(logits, scene, index)
    orders = [stated] if count == 1 else [stated, stated[::-1]]
    seen = max(orders, key=lambda order: _agreement(scene.objects, order))
    for name in WORDS:
        verdict[name] = _right(scene.objects, seen, name)
    placed = seen if scene.relation is None else stated
    at_places = {name: _right(scene.objects, placed, name) for name in WORDS}
    if count == 2:
        for name in ("colour", "texture", "size"):
            verdict[f"{name}_binding"] = at_places[name]
        verdict["objects"] = _all_spoken((at_places["colour"], at_places["shape"]))
    verdict["everything"] = _all_spoken((verdict["count"], verdict["background"], *at_places.values()))
    return verdict


def judge_scenes(logits: Mapping[str, Tensor], scenes: Sequence[Scene]) -> list[dict[str, bool | None]]:
    """:func:`judge_scene` of every image of a batch; one copy from the device for all of them.

    Raises ``UsageError`` when there are not as many scenes as images.
    """
    if len(logits["count"]) != len(scenes):
        raise UsageError(f"{len(logits['count'])} images and {len(scenes)} scenes: give as many")
    host = {name: value.detach().cpu() for name, value in logits.items() if name not in ("attention", "features")}
    return [judge_scene(host, scene, index) for index, scene in enumerate(scenes)]


def _stated_order(logits: Mapping[str, Tensor], scene: Scene, index: int) -> list[dict[str, str]]:
    """What is seen where each object of the scene should be."""
    if len(scene.objects) == 1:
        return [_read(logits, index, (0, 1, 2, 3))]
    if scene.relation is not None:
        slots = RELATION_SLOTS[scene.relation]
    else:
        place = logits["place"][index]
        apart_x, apart_y = (place[1, 0] - place[0, 0]).abs(), (place[3, 1] - place[2, 1]).abs()
        slots = (0, 1) if bool(apart_x >= apart_y) else (2, 3)
    return [_read(logits, index, (slot,)) for slot in slots]


def _read(logits: Mapping[str, Tensor], index: int, slots: tuple[int, ...]) -> dict[str, str]:
    # Slots that are the same object vote with their log-probabilities.
    return {
        name: words[int(logits[name][index, list(slots)].log_softmax(-1).sum(0).argmax())]
        for name, words in WORDS.items()
    }


def _agreement(objects: Sequence[SceneObject], seen: Sequence[Mapping[str, str]]) -> int:
    return sum(getattr(item, name) == found[name] for item, found in zip(objects, seen, strict=True) for name in WORDS)


def _right(objects: Sequence[SceneObject], seen: Sequence[Mapping[str, str]], name: str) -> bool | None:
    pairs = [(getattr(item, name), found[name]) for item, found in zip(objects, seen, strict=True)]
    return _all_spoken(None if wanted is None else wanted == found for wanted, found in pairs)


def _all_spoken(rights: Iterable[bool | None]) -> bool | None:
    """Whether all is right that is spoken of; None: nothing is."""
    spoken = [right for right in rights if right is not None]
    return all(spoken) if spoken else None


@torch.inference_mode()
def judge_images(
    judge: Judge, images: Tensor, scenes: Sequence[Scene], batch: int = 64
) -> list[dict[str, bool | None]]:
    """What is right in each image (B, 3, H, W) in [0, 1]; None where its caption does not say."""
    verdicts = []
    for start in range(0, len(scenes), batch):
        logits = judge(2 * images[start : start + batch] - 1)
        verdicts += judge_scenes(logits, scenes[start : start + batch])
    return verdicts


def accuracies(verdicts: Sequence[Mapping[str, bool | None]]) -> dict[str, tuple[float, int]]:
    """Per attribute the share that is right, and of how many."""
    table = {}
    for name in verdicts[0]:
        spoken = [verdict[name] for verdict in verdicts if verdict[name] is not None]
        if spoken:
            table[name] = (sum(map(bool, spoken)) / len(spoken), len(spoken))
    return table
