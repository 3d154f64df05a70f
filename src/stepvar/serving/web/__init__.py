"""A page in the browser: pictures scale by scale, dense and pruned beside each other, and what they cost."""

from __future__ import annotations

from stepvar.serving.web.serve import WAITING, check_package, parse_auth, serve

__all__ = ["WAITING", "check_package", "parse_auth", "serve"]
