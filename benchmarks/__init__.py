"""Measurements of the library; each module says the command that repeats it."""
