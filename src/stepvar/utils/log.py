"""The logger of the library: ``logging.getLogger("stepvar")``.

It says at INFO how far a long run is where no bar is shown, and at DEBUG what was loaded. It has no handler
of its own but one that does nothing; the command line adds one that writes to stderr.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("stepvar")
logger.addHandler(logging.NullHandler())
