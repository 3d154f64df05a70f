"""What the documentation does to pages beside its plugins."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc):<code>~?([\w.]+)</code>")
"""A cross-reference as docstrings write it, after Markdown has made code of its back-quoted part."""


def on_page_content(html: str, **_: Any) -> str:
    """Cross-references of docstrings become the last part of their name, as code."""
    return ROLE.sub(lambda match: f"<code>{match[1].rsplit('.', 1)[-1]}</code>", html)
