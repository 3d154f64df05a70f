"""Classes as conditions of a VAR model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator

from stepvar.core.tokens import ScaleSchedule
from stepvar.core.values import as_list, shown, whole_number
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
        several = as_list(given)
        if several is None:
            several = [given]
        if not several:
            raise UsageError("class_labels: an empty list; give at least one class")
        labels = [self._label(one) for one in several]
        return ClassInputs(tuple(label for label in labels for _ in range(times)), self._named)

    def example(self, tokens: int = 16, schedule: ScaleSchedule | None = None) -> GenerationInputs:
        return GenerationInputs(class_labels=0)

    @property
    def _named(self) -> bool:
        return self.classes == len(class_names())

    def _label(self, given: Any) -> int:
        if isinstance(given, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", given):
            given = int(given)  # a command line has texts only
        if not isinstance(given, str):
            label = whole_number("class_labels", given)
            if label < 0:
                return -1
            if not self._named and label >= self.classes:
                raise UsageError(f"class {label}: must be below {self.classes}; a negative number is any class")
            return class_index(label) if self._named else label
        if not self._named:
            most = self.classes - 1
            raise UsageError(
                f"class {shown(given)}: this model has {self.classes} classes, which have no names here; "
                f"give a number from 0 to {most}"
            )
        return class_index(given)
