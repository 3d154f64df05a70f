"""A log that programs read: one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from stepvar.utils.log import logger

FACTS = "facts"
"""The attribute of a record that holds further entries of its object."""

_OTHERS = ("uvicorn", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """Time, level, message, and what else a record brings."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        entry |= getattr(record, FACTS, {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


@contextmanager
def json_log() -> Iterator[None]:
    """Within it, the library and uvicorn log as JSON to stderr, and nowhere else.

    Warnings are not logged: they quote prompts, and Python keeps a copy of each for ever to show it once only.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    known = [logger, *map(logging.getLogger, _OTHERS)]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in known]
    for one in known:
        one.handlers, one.propagate = [handler], False
        one.setLevel(logging.INFO if one is logger else logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, handlers, level, propagate in before:
            one.handlers, one.level, one.propagate = handlers, level, propagate
