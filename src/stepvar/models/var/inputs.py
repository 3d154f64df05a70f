"""Classes as conditions of a VAR model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator

from stepvar.core.tokens import ScaleSchedule
from stepvar.errors import UsageError
from stepvar.models.inputs import VIDEO_ONLY, EncodedInputs, GenerationInputs, InputProcessor, PreparedInputs
from stepvar.models.var.classes import class_index, class_names
from stepvar.models.var.model import ClassCondition


@dataclass(frozen=True)
class ClassInputs(PreparedInputs):
    """One class per image; a negative number is an image of anything."""

    labels: tuple[int, ...]
    named: bool

    @property
    def captions(self) -> list[str]:
        names = class_names() if self.named else ()
        return [names[label][0] if 0 <= label < len(names) else f"class {label}" for label in self.labels]

    def encode(self, schedule: ScaleSchedule, generators: Sequence[Generator]) -> EncodedInputs:
        return EncodedInputs(ClassCondition(self.labels))


class ClassInputProcessor(InputProcessor):
    """Takes classes by number, or by name where the model has the 1000 classes of ImageNet.

    Args:
        classes: how many the model knows.
    """

    argument = "class_labels"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def prepare(self, inputs: GenerationInputs, times: int) -> ClassInputs:
        inputs.refuse(VIDEO_ONLY, "it to a model that generates videos")
        inputs.refuse(
            ["prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"], "class_labels, names or numbers"
        )
        given = inputs.class_labels
        if given is None:
            raise UsageError("class_labels: say what to generate, such as 'golden retriever' or 207")
        several = [given] if isinstance(given, (str, int)) else list(given)
        if not several:
            raise UsageError("class_labels: none given")
        labels = [self._label(one) for one in several]
        return ClassInputs(tuple(label for label in labels for _ in range(times)), self._named)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(class_labels=0)

    @property
    def _named(self) -> bool:
        return self.classes == len(class_names())

    def _label(self, given: str | int) -> int:
        if isinstance(given, int) and (given < 0 or not self._named):
            if given >= self.classes:
                raise UsageError(f"class {given}: must be below {self.classes}; a negative number is any class")
            return max(given, -1)
        return class_index(given)
