"""The command line: ``stepvar --help``."""

from stepvar.cli.app import main

__all__ = ["main"]
