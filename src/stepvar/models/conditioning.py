"""What to draw: from the arguments of a call to the condition of a model, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from stepvar.errors import UsageError


@dataclass(frozen=True)
class Subject:
    """What a caller wants drawn; a family takes some of these and refuses the others.

    Attributes:
        prompt, negative_prompt: texts, one or a list.
        prompt_embeds, negative_prompt_embeds: text features computed elsewhere, (L, C), (B, L, C) or a list of (L, C).
        class_labels: names or numbers of classes, one or a list.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | Sequence[Tensor] | None = None
    negative_prompt_embeds: Tensor | Sequence[Tensor] | None = None
    class_labels: str | int | Sequence[str | int] | None = None

    def refuse(self, names: Sequence[str], instead: str) -> None:
        """Raises a UsageError if one of the named arguments was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise UsageError(f"{name}: this model does not take it; give {instead}")


class Request(Protocol):
    """A subject that a model can draw."""

    @property
    def captions(self) -> list[str]:
        """What each image shows, in words: one text per image."""
        ...

    def condition(self) -> Any:
        """The condition in the family's own form; this is where texts are encoded."""
        ...


class Conditioner(Protocol):
    """How a family turns subjects into conditions.

    Attributes:
        argument: the field of a subject that says what to draw: ``"prompt"`` or ``"class_labels"``.
    """

    argument: str

    def request(self, subject: Subject, times: int) -> Request:
        """Checks a subject, of which each prompt or class is drawn ``times`` times.

        Raises:
            UsageError: for what this family cannot draw.
        """
        ...

    def guidance(self, scale: float, scales: int) -> tuple[float, ...]:
        """The guidance of each scale that one number stands for."""
        ...


def texts(name: str, given: str | Sequence[str], empty: bool = False) -> list[str]:
    """One text or several as a list.

    Args:
        name: of the argument, for errors.
        empty: whether an empty text is allowed.

    Raises:
        UsageError: for anything else.
    """
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, (list, tuple)) or not several:
        raise UsageError(f"{name}={given!r}: give a string or a list of strings")
    for text in several:
        if not isinstance(text, str):
            raise UsageError(f"{name}: {text!r} is not a string")
        if not empty and not text.strip():
            raise UsageError(f"{name}={text!r}: is empty; say what to draw")
    return list(several)
