"""Errors that a user can act on; the command line prints them in one line."""

from __future__ import annotations

LONGEST_MESSAGE = 1500
"""Characters; what other libraries say of a damaged file may be a page."""


def printable(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A text in one line that a terminal shows as it stands.

    What files and arguments bring along (control characters, terminal escapes, stray bytes) is written as Python
    writes it, ``\\x1b``; line breaks become spaces; what is too long is cut in the middle.
    """
    text = " ".join(text.splitlines()) if len(text.splitlines()) > 1 else text
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


class StepvarError(Exception):
    """Something is wrong that the message names, with its remedy; in one printable line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class UsageError(StepvarError, ValueError):
    """An argument is wrong: the message names its value, the limit and the remedy."""


class UnknownArgument(UsageError, TypeError):
    """A function has no argument of this name: the message says what to use instead."""


class UnknownAttribute(UsageError, AttributeError):
    """An object has no attribute of this name: the message says what to use instead."""


class MethodError(StepvarError):
    """The code of an acceleration method failed: the message says whose code, and where."""


class CheckpointError(StepvarError):
    """A weight file is missing, damaged, or does not fit the model."""


class ExperimentalWarning(UserWarning):
    """Something is used that no published model was made for."""


class OutputError(StepvarError, OSError):
    """A result could not be written."""
