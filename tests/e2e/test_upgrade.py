"""Clients that ask for HTTP/2 without TLS are served over HTTP/1.1: curl and the JDK's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import PATIENCE, Service, client, encoded
from tests.support import senders
from tests.support.senders import Call

CURL = shutil.which("curl")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")


needs_curl = pytest.mark.skipif(not senders.curl_has_http2(), reason="there is no curl with HTTP/2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small image, and one that is many times what a connection takes at once."""
    folder = tmp_path_factory.mktemp("images")
    contents = encoded(), encoded("BMP", (2000, 1000))
    paths = [folder / "small.png", folder / "large.bmp"]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def predictions(service: Service, path: Path) -> object:
    response = client.post(f"{service.url}/v1/classify", content=path.read_bytes())
    return response.json()["predictions"]


@needs_curl
@pytest.mark.parametrize("options", [[], ["-H", "Transfer-Encoding: chunked"]])
def test_curl_asks_for_http_2_twice_on_one_connection(
    service: Service, files: list[Path], options: list[str]
) -> None:
    for path in files:
        one = ["--http2", "-sSv", "-H", "Content-Type: image/png", *options]
        one += ["--data-binary", f"@{path}", f"{service.url}/v1/classify"]
        done = subprocess.run(
            [str(CURL), *one, "--next", *one],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.stderr.count("Upgrade: h2c") == 2
        assert done.stderr.count("* Connected to") == 1
        decoder, rest = json.JSONDecoder(), done.stdout
        for _ in range(2):
            answer, end = decoder.raw_decode(rest)
            rest = rest[end:]
            assert answer["predictions"] == predictions(service, path), answer


@needs_curl
def test_curl_that_knows_better_is_told_what_to_send(service: Service) -> None:
    done = subprocess.run(
        [str(CURL), "--http2-prior-knowledge", "-sS", f"{service.url}/health/live"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    deadline = time.monotonic() + PATIENCE
    while not any("HTTP/2 is not supported" in line for line in service.log):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_java
def test_the_jdks_client_is_served_on_one_connection(service: Service, files: list[Path]) -> None:
    expected = [answer for path in files for answer in [predictions(service, path)] * 2]
    with httpx.Client() as same:

        def accepted() -> int:
            text = same.get(f"{service.url}/metrics").text
            found = re.search(r"^resnet_serve_loop_accepts_total (\S+)$", text, re.MULTILINE)
            assert found is not None
            return int(float(found[1]))

        accepted()
        time.sleep(0.5)  # Connections are counted a moment later.
        before = accepted()
        calls = [
            Call(method, "/v1/classify", path.read_bytes(), {"Content-Type": "image/png"})
            for path in files
            for method in ("POST", "STREAM")  # with a length, and in chunks
        ]
        replies = senders.java(service.url, calls)
        assert [reply.status for reply in replies] == [200] * 4, replies
        assert [json.loads(reply.body)["predictions"] for reply in replies] == expected
        time.sleep(0.5)
        assert accepted() == before + 1
