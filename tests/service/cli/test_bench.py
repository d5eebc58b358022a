"""`resnet-serve bench`, against the service and against a scripted server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from models.extras import install
from service.cli.main import main
from tests.conftest import Service, encoded
from tests.support.scripted import Scripted, answer, scripted
from tests.support.unruly import answer as unruly_answer
from tests.support.unruly import unruly

SHORT = ("--seconds", "0.3", "--warm-up-s", "0.1")


def bench(*arguments: str | Path, status: int = 0) -> Result:
    done = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, kind in enumerate(("PNG", "JPEG", "WEBP")):
        (folder / f"{index}.{kind.lower()}").write_bytes(encoded(kind))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted(lambda number, body: [answer()]) as running:
        yield running


def document(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    printed: dict[str, Any]
    printed = json.loads(bench(*SHORT, "--json", *arguments, status=status).stdout)
    return printed


def test_the_service_answers_the_raw_images_of_a_folder(service: Service, photos: Path) -> None:
    found = document("--url", f"{service.url}/v1/classify", "--connections", "2", photos)
    assert found["images"] == 3
    assert found["machine"]["cpus"] >= 1
    assert {"python", "resnet-serve", "torch", "uvicorn"} <= set(found["versions"])
    (run,) = found["runs"]
    assert run["mode"] == "closed"
    assert run["connections"] == 2
    assert set(run["answers"]) == {"200"}
    assert list(run["latency_ms"]) == ["p50", "p90", "p95", "p99", "p99.9", "max"]
    assert {"decode", "queue", "inference", "total", "rest"} <= set(run["phases_ms"])
    assert sum(run["histogram"]["counts"]) == run["answers"]["200"]


def test_the_service_answers_forms(service: Service, photos: Path) -> None:
    load = ("--rate", "20", "--arrivals", "fixed", "--form", "image", "--content-type", "image/png")
    found = document("--url", f"{service.url}/v1/classify", *load, "--slo-ms", "60000", photos)
    (run,) = found["runs"]
    assert run["mode"] == "open"
    assert run["rate"] == 20
    assert run["arrivals"] == "fixed"
    assert set(run["answers"]) == {"200"}
    assert run["goodput"] == pytest.approx(run["answers"]["200"] / 0.3, abs=0.1)


def test_a_header_reaches_the_service(service: Service, photos: Path) -> None:
    url = f"{service.url}/v1/classify"
    header = ("--header", "X-Request-Timeout-Ms: nonsense")
    (run,) = document("--url", url, "--connections", "1", *header, photos, status=1)["runs"]
    assert set(run["answers"]) == {"422"}
    assert set(run["refused_ms"]) == {"422"}
    assert run["latency_ms"] == {}


def test_a_base_url_loads_the_classifier(service: Service, photos: Path) -> None:
    for url in (service.url, f"{service.url}/", f"{service.url}?top_k=1"):
        found = document("--url", url, "--connections", "1", photos)
        assert set(found["runs"][0]["answers"]) == {"200"}
        assert "/v1/classify" in found["url"]


def test_an_error_to_every_request_is_no_success(server: Scripted, photos: Path) -> None:
    with scripted(lambda number, body: [answer(403)]) as refusing:
        url = f"http://127.0.0.1:{refusing.port}/elsewhere"
        printed = bench(*SHORT, "--url", url, "--connections", "1", photos, status=1).stdout
    assert "x 403" in printed
    assert "no request succeeded" in printed


@pytest.mark.parametrize("status", [404, 405])
def test_a_url_where_nothing_takes_images_is_refused_before_the_load(
    photos: Path, status: int
) -> None:
    with scripted(lambda number, body: [answer(status)]) as elsewhere:
        url = f"http://127.0.0.1:{elsewhere.port}/of/another"
        line = bench(*SHORT, "--url", url, photos, status=2).stderr
        assert len(list(filter(None, elsewhere.bodies))) == 1
    assert line.startswith(f"resnet-serve: {url} answers {status}: nothing takes images there")
    assert line.count("\n") == 1


def test_the_key_is_that_of_classify(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("of-the-file-0123456789\n")
    file.chmod(0o600)
    monkeypatch.setenv("RESNET_SERVE_KEY", "of-the-environment")
    short = (*SHORT, "--connections", "1", photos)
    for arguments, key in (
        (["--url", "{}/v1/classify"], "of-the-environment"),
        (["--url", "{}", "--key-file", str(file)], "of-the-file-0123456789"),
        (["--url", "{}/of/another"], None),
    ):
        with unruly(unruly_answer(200, b"{}")) as server:
            url = [argument.format(server.url) for argument in arguments]
            printed = bench(*url, *short).output
            sent = {headers.get("authorization") for headers in server.headers[-3:]}
        assert sent == {key and f"Bearer {key}"}
        assert str(key) not in printed


def test_clients_who_leave_and_who_keep_no_connection(photos: Path) -> None:
    def slow(number: int, body: bytes) -> Iterator[bytes | float]:
        yield 0.05
        yield answer()

    with scripted(slow) as server:
        load = ("--connections", "1", "--rate", "200", "--patience-ms", "20")
        arguments = (*SHORT, "--url", server.url, *load, "--new-connections", "1", photos)
        printed = bench(*arguments).stdout
        assert " x no connection" in printed
        # One asked whether anybody listens.
        assert server.connections == 1 + len(server.bodies)


def test_a_table_a_file_and_a_picture(server: Scripted, photos: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "out.json", tmp_path / "out.png"
    loads = ("--connections", "1", "--connections", "3", "--output", output, "--plot", plot)
    lines = bench(*SHORT, "--url", server.url, *loads, photos).stdout.splitlines()
    assert lines[0].split()[:3] == ["load", "images/s", "goodput"]
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "connection"], ["3", "connections"]]
    assert [run["connections"] for run in json.loads(output.read_text())["runs"]] == [1, 3]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_one_open_loop_as_svg(server: Scripted, photos: Path, tmp_path: Path) -> None:
    plot = tmp_path / "out.svg"
    bench(*SHORT, "--url", server.url, "--rate", "50", "--slo-ms", "5", "--plot", plot, photos)
    assert "<svg" in plot.read_text()


def test_a_picture_of_nothing_but_refusals(photos: Path, tmp_path: Path) -> None:
    plot = tmp_path / "out.svg"
    with scripted(lambda number, body: [answer(429)]) as server:
        loads = ("--connections", "1", "--connections", "2")
        arguments = (*SHORT, "--url", server.url, *loads, "--plot", plot, photos)
        printed = bench(*arguments, status=1).stdout
    assert "429: p50" in printed
    assert printed.count("no request succeeded") == 2
    assert plot.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "https://127.0.0.1/", "IMAGE"], "TLS"),
        (["--url", "nonsense", "IMAGE"], "must look like http://"),
        (["--url", "http://127.0.0.1:9/", "IMAGE"], "refused"),
        (["--header", "nonsense", "IMAGE"], "is not a header"),
        (["--rate", "1", "--connections", "1", "--connections", "2", "IMAGE"], "one number"),
        (["--plot", "x.gif", "IMAGE"], ".png or .svg"),
        (["--plot", "/nowhere/x.png", "IMAGE"], "there is no folder"),
        (["--output", "/nowhere/x.json", "IMAGE"], "there is no folder"),
        (["/nowhere.png"], "no such file or folder"),
        (["EMPTY"], "has no images"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], words: str, photos: Path, tmp_path: Path
) -> None:
    places = {"IMAGE": photos, "EMPTY": tmp_path}
    line = bench(*(places.get(argument, argument) for argument in arguments), status=2).stderr
    assert line.count("\n") == 1
    assert line.startswith("resnet-serve: ")
    assert words in line


def test_a_picture_without_matplotlib_is_refused_before_the_load(
    monkeypatch: pytest.MonkeyPatch, server: Scripted, photos: Path
) -> None:
    monkeypatch.delitem(sys.modules, "service.cli.load.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = len(server.bodies)
    line = bench("--url", server.url, "--plot", "x.png", photos, status=2).stderr
    assert install("bench") in line
    assert len(server.bodies) == before
