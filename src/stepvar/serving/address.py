"""Addresses that a server or a page listens on."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from stepvar.core.values import Range, whole_number
from stepvar.errors import UsageError

PORTS = Range(0, 65535, note="0: any free one")
BACKLOG = 2048
STALLED = 60
"""Seconds after which a client that reads nothing of what was sent to it is cut off."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: if the address cannot be used.
    """
    whole_number("port", port, PORTS)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise UsageError(f"host={host!r}: is not an address; give 127.0.0.1, or 0.0.0.0 for all networks") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it; Linux only
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALLED)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise UsageError(f"host={host!r}, port={port}: cannot be opened ({reason}); give another --port") from None
    return listener


def check_address(host: str, port: int) -> int:
    """The port, or a free one for 0, if it can be opened: to know before a model is loaded.

    Raises:
        UsageError: as :func:`listen` does.
    """
    with listen(host, port) as probe:
        found: int = probe.getsockname()[1]
    return found


def url_of(host: str, port: int) -> str:
    """Where clients find it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_public(host: str) -> bool:
    """Whether other machines reach it."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
