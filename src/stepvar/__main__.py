"""``python -m stepvar``."""

import sys

from stepvar.cli import main

sys.exit(main())
