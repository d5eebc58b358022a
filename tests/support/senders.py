"""Real HTTP clients of several languages, each as a function that sends the same calls."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import requests

PROGRAMS = Path(__file__).with_name("programs")
NAME, KIND = "ship.png", "image/png"
SECONDS = 120


@dataclass(frozen=True)
class Call:
    """`form`: the field of a form that the body is sent as; empty: the body is sent as it is.
    `method`: of `java`, STREAM is a POST of a body whose length it does not know."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    form: str = ""


class Reply(NamedTuple):
    status: int
    body: str


Sender = Callable[[str, Sequence[Call]], list[Reply]]


def curl(base: str, calls: Sequence[Call], *options: str) -> list[Reply]:
    return [_curl(base, call, options) for call in calls]


def curl_http2(base: str, calls: Sequence[Call]) -> list[Reply]:
    """It asks for HTTP/2 by an upgrade, which the service ignores."""
    return curl(base, calls, "--http2")


def _curl(base: str, call: Call, options: Sequence[str]) -> Reply:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / NAME
        file.write_bytes(call.body)
        if call.form:
            body = ["-F", f"{call.form}=@{file};type={KIND}"]
        elif call.method == "PUT":
            body = ["-T", str(file)]
        else:
            body = ["--data-binary", f"@{file}"]
        headers = [part for pair in call.headers.items() for part in ("-H", ": ".join(pair))]
        command = [
            "curl",
            "-sS",
            *options,
            *headers,
            *body,
            "-w",
            r"\n%{http_code}",
            base + call.path,
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    text, _, status = ran.stdout.rpartition("\n")
    return Reply(int(status), text)


def with_urllib(base: str, calls: Sequence[Call]) -> list[Reply]:
    return [_with_urllib(base, call) for call in calls]


def _with_urllib(base: str, call: Call) -> Reply:
    request = urllib.request.Request(
        base + call.path, call.body, dict(call.headers), method=call.method
    )
    with urllib.request.build_opener(AnyStatus).open(request, timeout=SECONDS) as response:
        return Reply(response.status, response.read().decode())


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """A refusal is a reply."""

    def http_response(self, request: object, response: Any) -> Any:
        return response


def with_requests(base: str, calls: Sequence[Call]) -> list[Reply]:
    with requests.Session() as session:
        return [_with_requests(session, base, call) for call in calls]


def _with_requests(session: requests.Session, base: str, call: Call) -> Reply:
    content = {"files": {call.form: (NAME, call.body, KIND)}} if call.form else {"data": call.body}
    response = session.request(
        call.method, base + call.path, headers=call.headers, timeout=SECONDS, **content
    )
    return Reply(response.status_code, response.text)


def with_httpx(base: str, calls: Sequence[Call]) -> list[Reply]:
    with httpx.Client(base_url=base, timeout=SECONDS) as client:
        return [_with_httpx(client, call) for call in calls]


def _with_httpx(client: httpx.Client, call: Call) -> Reply:
    if call.form:
        files = {call.form: (NAME, call.body, KIND)}
        response = client.request(call.method, call.path, headers=call.headers, files=files)
    else:
        response = client.request(call.method, call.path, headers=call.headers, content=call.body)
    return Reply(response.status_code, response.text)


def with_aiohttp(base: str, calls: Sequence[Call]) -> list[Reply]:
    async def send_all() -> list[Reply]:
        async with aiohttp.ClientSession() as session:
            return [await _with_aiohttp(session, base, call) for call in calls]

    return asyncio.run(send_all())


async def _with_aiohttp(session: aiohttp.ClientSession, base: str, call: Call) -> Reply:
    data: bytes | aiohttp.FormData = call.body
    if call.form:
        data = aiohttp.FormData()
        data.add_field(call.form, call.body, filename=NAME, content_type=KIND)
    url = base + call.path
    async with session.request(call.method, url, data=data, headers=call.headers) as response:
        return Reply(response.status, await response.text())


def node(base: str, calls: Sequence[Call]) -> list[Reply]:
    """Node's fetch."""
    document = [
        {"method": call.method, "url": base + call.path, "headers": dict(call.headers),
         "body": base64.b64encode(call.body).decode(), "field": call.form}
        for call in calls
    ]  # fmt: skip
    ran = _run(["node", str(PROGRAMS / "send.mjs")], json.dumps(document))
    return [Reply(**reply) for reply in json.loads(ran)]


def java(base: str, calls: Sequence[Call]) -> list[Reply]:
    """The JDK's HttpClient, which asks for HTTP/2 by an upgrade."""
    lines = [
        " ".join(
            (
                call.method,
                base + call.path,
                ",".join(map("=".join, call.headers.items())) or "-",
                base64.b64encode(call.body).decode(),
                call.form or "-",
            )
        )
        for call in calls
    ]
    ran = _run(["java", str(PROGRAMS / "Send.java")], "\n".join(lines) + "\n")
    replies = [line.split(" ") for line in ran.splitlines()]
    return [Reply(int(status), base64.b64decode(text).decode()) for status, _, text in replies]


def _run(command: list[str], stdin: str = "") -> str:
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=True, timeout=SECONDS
    ).stdout


def curl_has_http2() -> bool:
    return shutil.which("curl") is not None and "HTTP2" in _run(["curl", "--version"])
