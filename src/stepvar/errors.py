"""Errors that a user can act on; the command line prints them in one line."""

from __future__ import annotations


class StepvarError(Exception):
    """Something is wrong that the message names, with its remedy."""


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
