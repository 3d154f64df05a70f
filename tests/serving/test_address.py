"""Addresses that the server and the page listen on."""

from __future__ import annotations

import socket

import pytest

from stepvar.errors import UsageError
from stepvar.serving.address import check_address, is_public, listen, url_of


def test_port_0_takes_a_free_one() -> None:
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)):
            pass
    assert check_address(host, port) == port


def test_an_address_that_cannot_be_opened_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="another --port"):
        check_address("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="is not an address"):
        listen("no such host", 7860)
    with pytest.raises(UsageError, match="port=70000"):
        listen("127.0.0.1", 70000)


@pytest.mark.parametrize(
    ("host", "public"),
    [("127.0.0.1", False), ("127.8.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)],
)
def test_who_reaches_it(host: str, public: bool) -> None:
    assert is_public(host) is public


def test_addresses_of_version_6_stand_in_brackets() -> None:
    assert (url_of("::1", 80), url_of("127.0.0.1", 80)) == ("http://[::1]:80", "http://127.0.0.1:80")
