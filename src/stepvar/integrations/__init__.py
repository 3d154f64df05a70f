"""Pipelines in the shape of other libraries, for tools that are written for those."""
