from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from service.cli.load.base_url import classifier_url
from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target
from service.errors import ConfigError
from tests.support.scripted import answer, scripted
from tests.support.unruly import answer as answered
from tests.support.unruly import unruly

HEALTHY = answered(200, b'{"status": "alive", "reasons": {}}')


@pytest.mark.parametrize(
    ("url", "loaded"),
    [
        ("http://h:8000", "http://h:8000/v1/classify"),
        ("http://h:8000/", "http://h:8000/v1/classify"),
        ("http://h:8000/?model=m", "http://h:8000/v1/classify?model=m"),
        ("http://h/v1/classify?top_k=1", "http://h/v1/classify?top_k=1"),
        ("http://h/v1/classify/", "http://h/v1/classify"),
        ("https://h/x/v1/classify", "https://h/x/v1/classify"),
        ("unix:/run/x.sock", "http+unix://%2Frun%2Fx.sock/v1/classify"),
    ],
)
def test_a_base_url_leads_to_the_classifier(url: str, loaded: str) -> None:
    assert classifier_url(url) == (loaded, True)


def test_a_prefix_is_one_if_the_service_answers_below_it() -> None:
    with unruly(HEALTHY) as server:
        url = f"{server.url}/resnet"
        assert classifier_url(f"{url}/?model=m") == (f"{url}/v1/classify?model=m", True)


@pytest.mark.parametrize("health", [answered(404), answered(200, b"[]"), answered(200, b"x")])
def test_the_url_of_another_classifier_is_loaded_as_it_is(health: bytes) -> None:
    with unruly(health) as server:
        url = f"{server.url}/predictions/net?x=%20"
        assert classifier_url(url) == (url, False)
    assert classifier_url(url) == (url, False)  # Nobody listens: the load will say so.


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="write http://localhost:8000"):
        classifier_url("localhost:8000")


def test_a_unix_socket_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with scripted(lambda number, body: [answer()]) as server, socket.socket(socket.AF_UNIX) as here:
        here.bind(str(path))
        here.listen(64)

        def relay() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = here.accept()
                    upstream = socket.create_connection(("127.0.0.1", server.port))
                    for pair in ((connection, upstream), (upstream, connection)):
                        threading.Thread(target=copy, args=pair, daemon=True).start()

        def copy(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError), target:
                while data := source.recv(65_536):
                    target.sendall(data)

        thread = threading.Thread(target=relay)
        thread.start()
        target = Target.of(classifier_url(f"unix:{path}")[0], [b"image"])
        assert target.url == f"unix:{path}/v1/classify"
        assert target.requests[0].startswith(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n")
        report = run_load(target, Run(2, 0.3, warm_up=0.0))
        here.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert set(report.answers) == {200}


def test_credentials_are_sent_and_not_kept() -> None:
    with unruly(answered(200, b"{}")) as server:
        url = server.url.replace("http://", "http://me:secret@")
        target = Target.of(classifier_url(url)[0], [b"image"])
        assert b"Authorization: Basic bWU6c2VjcmV0\r\n" in target.requests[0]
        assert target.url == f"{server.url}/v1/classify"
