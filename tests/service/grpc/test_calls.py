from __future__ import annotations

from types import SimpleNamespace

import pytest

from service.grpc.calls import client_of


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1:5000"),
        ("ipv6:%5B2001:db8::1%5D:5000", "[2001:db8::1]:5000"),
        ("unix:", ""),
        ("unix:/run/a.sock", ""),
    ],
)
def test_the_address_of_a_client_is_told_as_over_http(peer: str, client: str) -> None:
    assert client_of(SimpleNamespace(peer=lambda: peer)) == client
