"""Whether what a caption says is true of a fully specified scene or clip."""

from __future__ import annotations

from stepvar.evaluation.scenes.clips.grammar import Clip
from stepvar.evaluation.scenes.grammar import INVERSE, Scene, SceneObject


def describes(spoken: Scene, scene: Scene) -> bool:
    """Whether everything that ``spoken`` says is true of ``scene``, whose objects it may name in either order."""
    orders = [(scene.objects, scene.relation)]
    if scene.relation is not None:
        orders.append((scene.objects[::-1], INVERSE[scene.relation]))
    return (
        len(spoken.objects) == len(scene.objects)
        and spoken.background in (None, scene.background)
        and any(
            spoken.relation in (None, relation) and all(map(_object_describes, spoken.objects, objects))
            for objects, relation in orders
        )
    )


def _object_describes(spoken: SceneObject, item: SceneObject) -> bool:
    fields = ("shape", "colour", "texture", "size")
    return all(getattr(spoken, name) in (None, getattr(item, name)) for name in fields)


def clip_describes(spoken: Clip, clip: Clip) -> bool:
    """Whether everything that ``spoken`` says is true of ``clip``."""
    return (
        _object_describes(spoken.item, clip.item)
        and spoken.background in (None, clip.background)
        and (spoken.motion is None or (spoken.motion, spoken.rolling) == (clip.motion, clip.rolling))
        and spoken.speed in (None, clip.speed)
    )
