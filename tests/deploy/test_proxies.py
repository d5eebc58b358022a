"""deploy/nginx with a real nginx, and deploy/systemd as systemd itself judges it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from service.config.settings import Settings
from tests.conftest import (
    CACHE,
    CHOSEN,
    COMMAND,
    PATIENCE,
    Service,
    clean_environment,
    client,
    encoded,
    started,
)
from tests.deploy.chart import render
from tests.deploy.test_schemas import check_manifest
from tests.guides.blocks import blocks
from tests.support.ports import free_port
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
SITE = (ROOT / "deploy/nginx/resnet-serve.conf").read_text("utf-8")
UNITS = ROOT / "deploy/systemd"
NGINX = shutil.which("nginx")
MODEL = ("--model", "random:resnet20")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx")


def seconds(setting: str) -> int:
    found = re.search(rf"^ *{setting} (\d+)s;", SITE, re.MULTILINE)
    assert found is not None, setting
    return int(found[1])


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[str]:
    """The URL of a real nginx with the site as it is, but for two addresses."""
    assert NGINX is not None
    port = free_port()
    site, count = re.subn(r"server unix:\S+;", f"server {upstream};", SITE)
    site, listens = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", site)
    assert (count, listens) == (1, 1)
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {folder / name};\n" for name in folders)
    log = folder / "access.log"
    config = folder / "nginx.conf"
    config.write_text(
        f"user root;\ndaemon off;\npid {folder / 'pid'};\nerror_log {folder / 'error.log'} warn;\n"
        f"events {{}}\nhttp {{\n{temporary}"
        f"log_format made '$status $upstream_connect_time $request_id';\n"
        f"access_log {log} made;\n{site}}}\n"
    )
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)])
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    assert (folder / "error.log").read_text() == ""


def connections(service: Service) -> float:
    """How many the service has accepted."""
    text = service.client.get(f"{service.url}/metrics").text
    found = re.search(r"^resnet_serve_backlog_seconds_count (\S+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


@needs_nginx
@pytest.mark.parametrize("unix", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_site_serves_large_images_over_few_connections(tmp_path: Path, unix: bool) -> None:
    path = tmp_path / "s"
    host = f"unix:{path}" if unix else "127.0.0.1"
    with started("--host", host, *MODEL, RESNET_SERVE_LOG_LEVEL="debug") as service:
        upstream = host if unix else f"127.0.0.1:{service.port}"
        with nginx(tmp_path, upstream) as url, httpx.Client(timeout=PATIENCE) as caller:
            large = encoded("BMP", (900, 900))
            assert len(large) > 2**20
            assert caller.post(f"{url}/v1/classify", content=large).status_code == 200
            before = connections(service)
            for _ in range(20):
                response = caller.post(f"{url}/v1/classify", content=encoded())
                assert response.status_code == 200
            assert connections(service) <= before + 2  # One of them is the scrape's.
            request_id = response.headers["x-request-id"]
            assert re.fullmatch(r"[0-9a-f]{32}", request_id)  # nginx's own
            until(lambda: any(request_id in line for line in service.log))
            # Refused at once, of a body that never arrives.
            refused = refused_early(url)
            assert refused.startswith(b"HTTP/1.1 413")
        assert service.end() == 0


def refused_early(url: str) -> bytes:
    """The first bytes of the response to an upload of which only the head is sent."""
    host, port = url.removeprefix("http://").split(":")
    limit = Settings().max_body_bytes
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {limit + 1}\r\n\r\n"
        connection.sendall(head.encode())
        return connection.recv(100)


@needs_nginx
def test_behind_a_prefix_the_page_finds_all_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        started("--host", f"unix:{path}", *MODEL),
        nginx(tmp_path, f"unix:{path}") as url,
    ):
        for page in ("/vision/", "/vision/docs"):
            html = client.get(url + page).text
            links = re.findall(r'(?:href|src)="([^"#]+)"', html)
            assert len(links) > 5
            for link in links:
                found = httpx.URL(url + page).join(link)
                assert str(found).startswith(f"{url}/vision/")
                assert client.get(found).status_code == 200, link
        answer = client.post(f"{url}/vision/v1/classify", content=encoded())
        assert answer.status_code == 200


def test_nginx_allows_what_the_service_does() -> None:
    settings = Settings()
    found = re.search(r"client_max_body_size (\d+)m;", SITE)
    assert found is not None
    assert int(found[1]) * 2**20 == settings.max_batch_body_bytes
    assert seconds("proxy_read_timeout") > settings.request_timeout_ms / 1000
    assert seconds("keepalive_timeout") < settings.keep_alive_s


def unit(name: str) -> dict[str, list[str]]:
    """The values of each directive."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text("utf-8").splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_units_wait_for_the_drain_and_allow_the_connections() -> None:
    settings, service = Settings(), unit("resnet-serve.service")
    (stop,), (files,) = service["TimeoutStopSec"], service["LimitNOFILE"]
    assert int(stop) > settings.shutdown_grace_s + settings.shutdown_timeout_s + 10
    assert int(files) > 2 * settings.max_connections + 512
    assert service["Type"] == ["notify"]
    assert service["Requires"] == ["resnet-serve.socket"]
    assert unit("resnet-serve.socket")["ListenStream"][0] in SITE


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_units_and_the_guides_drop_in(tmp_path: Path) -> None:
    guide = (ROOT / "docs/guides/systemd.md").read_text("utf-8")
    drop_in = re.search(r"```text\n# /etc/systemd/system/(\S+)\n(.*?)```", guide, re.DOTALL)
    assert drop_in is not None
    (tmp_path / drop_in[1]).parent.mkdir()
    (tmp_path / drop_in[1]).write_text(drop_in[2])
    names = ("resnet-serve.service", "resnet-serve.socket")
    for name in names:
        text = (UNITS / name).read_text("utf-8")
        # Where it is installed here.
        (tmp_path / name).write_text(text.replace("/opt/resnet-serve/bin/resnet-serve", COMMAND))
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*verify, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate"
)
def test_systemds_own_tool_hands_its_socket_over() -> None:
    """It starts the service when the first client has connected."""
    port = free_port()
    # Else it passes hardly any variable on.
    variables = clean_environment() | CHOSEN | {"RESNET_SERVE_CACHE_DIR": CACHE}
    passed = [f"--setenv={name}={value}" for name, value in variables.items()]
    listen = ["systemd-socket-activate", *passed, "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*listen, COMMAND, "serve", *MODEL], stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                response = client.get(f"http://127.0.0.1:{port}/health/ready")
            except httpx.ConnectError:
                assert time.monotonic() < end
                continue
            if response.status_code == 200:
                break
            assert time.monotonic() < end
    finally:
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log
    assert f"serving resnet20 on http://127.0.0.1:{port} (" in log


def test_the_ingress_of_the_guide_is_what_the_chart_makes() -> None:
    guide = (ROOT / "docs/guides/behind-a-proxy.md").read_text("utf-8")
    (text,) = (block.text for block in blocks(guide) if "\ningress:\n" in block.text)
    values = yaml.safe_load(text)
    (made,) = render(values)
    ingress = made.one("Ingress")
    check_manifest(ingress)
    assert ingress["metadata"]["annotations"] == values["ingress"]["annotations"]
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == values["ingress"]["hosts"]
    # Room for a batch, and time for the deadline that a client asks for, as in nginx's site.
    limit = values["ingress"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert f"client_max_body_size {limit};" in SITE
