"""Interfaces for people who do not write Python: an HTTP server, a web page, and batch jobs."""
