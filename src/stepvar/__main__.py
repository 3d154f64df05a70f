"""``python -m stepvar``, and the command ``stepvar``."""

from __future__ import annotations

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    """While modules are imported there is nothing to clean up, and a traceback through them says nothing."""
    os.write(2, b"stepvar: interrupted\n" if number == signal.SIGINT else b"stepvar: terminated\n")
    os._exit(128 + number)


def main() -> int:
    """Runs the command line; the signals that end it have an answer before it is imported, and after it is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)

    from stepvar.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
