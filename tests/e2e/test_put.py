"""One image by PUT, as `curl -T FILE URL` sends it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.conftest import PATIENCE, Service, client, encoded
from tests.e2e.test_classify import is_problem

CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="there is no curl")


def curl(*arguments: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CURL), "-sSv", *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def without_times(response: httpx.Response) -> dict[str, object]:
    return {k: v for k, v in response.json().items() if k not in ("timing_ms", "batch_size")}


@pytest.mark.parametrize(
    "path", ["/v1/classify", "/v1/classify/?top_k=2", "/v1/embed", "/v1/explain"]
)
def test_put_gives_what_post_gives(service: Service, path: str) -> None:
    url = f"{service.url}{path}"
    put, post = (client.request(method, url, content=encoded()) for method in ("PUT", "POST"))
    assert put.status_code == post.status_code == 200
    assert without_times(put) == without_times(post)


@needs_curl
def test_a_large_file_is_sent_when_the_service_says_so(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "large.bmp"
    file.write_bytes(encoded("BMP", (800, 600)))
    done = curl("-T", str(file), f"{service.url}/v1/classify")
    assert "Expect: 100-continue" in done.stderr
    assert "HTTP/1.1 100 Continue" in done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 5
    with file.open("rb") as stdin:
        chunked = curl("-T", "-", f"{service.url}/v1/classify", stdin=stdin)
    assert "Transfer-Encoding: chunked" in chunked.stderr
    assert json.loads(chunked.stdout)["predictions"] == json.loads(done.stdout)["predictions"]


@needs_curl
def test_a_slash_too_many_is_explained(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "kitten.png"
    file.write_bytes(encoded())
    done = curl("-T", str(file), f"{service.url}/v1/classify/")
    assert "PUT /v1/classify/kitten.png" in done.stderr
    assert "there is no /v1/classify/kitten.png; " in done.stdout
    assert "leave out the slash" in json.loads(done.stdout)["detail"]


def test_several_images_need_post(service: Service) -> None:
    response = client.put(f"{service.url}/v1/classify/batch", content=encoded())
    is_problem(response, 405)
    assert response.headers["allow"] == "POST"
