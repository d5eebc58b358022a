"""A URL means the same to the client, to `classify --url` and to `bench --url`."""

from __future__ import annotations

import pytest

from service.client.address import address_of


@pytest.mark.parametrize(
    ("url", "base", "is_classify"),
    [
        ("http://host:8000", "http://host:8000", False),
        ("http://host:8000/", "http://host:8000", False),
        ("HTTP://host:8000//", "http://host:8000", False),
        ("http://host:8000/v1/classify", "http://host:8000", True),
        ("http://host:8000/v1/classify/?top_k=1", "http://host:8000", True),
        ("https://example.org/resnet", "https://example.org/resnet", False),
        ("https://example.org/resnet/", "https://example.org/resnet", False),
        ("https://example.org/resnet/v1/classify", "https://example.org/resnet", True),
        ("http://[::1]:8000", "http://[::1]:8000", False),
        ("unix:/run/x.sock", "http://localhost", False),
        ("unix:///run/x.sock", "http://localhost", False),
        ("http+unix://%2Frun%2Fx.sock", "http://localhost", False),
        ("http+unix://%2Frun%2Fx.sock/resnet/v1/classify", "http://localhost/resnet", True),
    ],
)
def test_a_base_url_is_what_precedes_the_services_paths(
    url: str, base: str, is_classify: bool
) -> None:
    address = address_of(url)
    assert (address.base, address.is_classify) == (base, is_classify)
    assert address.socket == ("/run/x.sock" if "unix" in url else "")


def test_a_query_is_kept() -> None:
    assert address_of("http://h/v1/classify?model=a&top_k=2").query == (
        ("model", "a"),
        ("top_k", "2"),
    )


def test_a_password_is_sent_and_not_shown() -> None:
    address = address_of("https://me:pass%20word@example.org/x")
    assert address.authorization == "Basic bWU6cGFzcyB3b3Jk"
    assert (address.base, address.shown) == ("https://example.org/x", "https://example.org/x")
    assert "bWU6" not in repr(address)
    assert "pass" not in repr(address)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "must look like http://127.0.0.1:8000.*; write http://localhost:8000"),
        ("127.0.0.1:8000/v1", "write http://127.0.0.1:8000/v1"),
        ("example.org", "write http://example.org"),
        ("http://", "must look like"),
        ("http://h:port", "[Pp]ort"),
        ("http://h/a b", "must look like"),
        ("", "must look like"),
        ("http://h:99999", "must look like http://127.0.0.1:8000, not 'http://h:99999'"),
        ("http://[::1", "must look like"),
        ("/run/x.sock", "write unix:/run/x.sock"),
        ("unix:", "must name a socket"),
        ("http+unix:///x", "must name a socket"),
    ],
)
def test_another_url_is_refused_with_what_to_write(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"\Aurl: .*{words}"):
        address_of(url)


@pytest.mark.parametrize("url", ["ftp://me:secret@h/", "me:secret@h", "http://me:secret@"])
def test_a_refusal_shows_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="must look like") as caught:
        address_of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("api.localhost", True),
        ("127.example.org", False),
        ("localhost.example.org", False),
        ("10.0.0.1", False),
    ],
)
def test_hosts_that_are_this_one(host: str, local: bool) -> None:
    assert address_of(f"http://{host}:8000").is_local is local
