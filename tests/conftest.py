"""A running service for tests: the installed command on a real socket."""

from __future__ import annotations

import gc
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models import processor
from service.config.variables import settle_home

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# One client for all: making one takes longer than many requests. Nothing is kept alive, so that
# a service that ends has no connection of ours to end.
client = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
# Kept from one run of the tests to the next, as a service keeps it from one start to the next.
CACHE = str(Path(tempfile.gettempdir()) / f"resnet-serve-tests-{os.getuid()}")
# Seconds that anything of a service may take, on however busy a machine.
PATIENCE = 60
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# So that it asks nobody but the service, and its camera is a picture that it makes.
CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
# What the pages ask for that may be refused; the browser complains about it.
REFUSING = ("/v1/", "/health/", "/metrics")
# What a test sees must not depend on how many CPUs there are, and a start need not measure them.
CHOSEN = {"RESNET_SERVE_WORKERS": "1", "RESNET_SERVE_ENGINE_THREADS": "1"}
# As the command does, for the libraries that tests import.
settle_home()
COMMAND = str(Path(sys.executable).with_name("resnet-serve"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Libraries and tests are millions of objects that stay. Without this, every search for
    garbage, as failed engines and benches ask for, visits all of them and takes a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Large files first, so that no process is still busy when all others have ended.
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: -sizes[item.path])
    if seed := os.environ.get("RANDOM_ORDER"):
        by_file: dict[Path, list[pytest.Item]] = {}
        for item in items:
            by_file.setdefault(item.path, []).append(item)
        # Files stay together, since their tests share what is dear to start.
        files, chance = list(by_file.values()), random.Random(seed)
        chance.shuffle(files)
        for file in files:
            chance.shuffle(file)
        items[:] = [item for file in files for item in file]


def clean_environment() -> dict[str, str]:
    """Without what whoever runs the tests has set for services of their own; which kind of CPU
    this one passes for is the tests' own."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RESNET_SERVE_") or name == processor.VARIABLE
    }


class Service:
    """A started `resnet-serve serve`; `log` grows as it writes.

    `path`: of its unix socket, if an argument or RESNET_SERVE_HOST names one, which `client` then
    uses; `pass_fds`: that it inherits.
    """

    def __init__(
        self,
        *arguments: str,
        command: Sequence[str] = (COMMAND,),
        cwd: Path | str | None = None,
        chosen: Mapping[str, str] = CHOSEN,
        pass_fds: Sequence[int] = (),
        **environment: str,
    ) -> None:
        self.log: list[str] = []
        hosts = [*arguments, environment.get("RESNET_SERVE_HOST", "")]
        at = [host.removeprefix("unix:") for host in hosts if host.startswith("unix:")]
        self.path = at[0] if at else None
        self.client = client
        port = () if self.path else ("--port", "0")
        clean = clean_environment() | {"RESNET_SERVE_CACHE_DIR": CACHE}
        self.process = subprocess.Popen(
            [*command, "serve", *port, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=clean | dict(chosen) | environment,
            pass_fds=pass_fds,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.url = self._wait_for(re.compile(r"on (https?://\S+:\d+|unix:)"))
        except AssertionError:
            self.end(signal.SIGKILL)
            raise
        if self.path is not None:
            self.url, self.port = "http://localhost", 0
            limits = httpx.Limits(max_keepalive_connections=0)
            transport = httpx.HTTPTransport(uds=self.path, limits=limits)
            self.client = httpx.Client(transport=transport, timeout=60)
        else:
            self.port = int(self.url.rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _wait_for(self, pattern: re.Pattern[str]) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            for line in list(self.log):
                if match := pattern.search(line):
                    return match[1]
            time.sleep(0.01)
        raise AssertionError(f"no {pattern.pattern} in:\n{''.join(self.log)}")

    def wait_until_ready(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.client.get(f"{self.url}/health/ready").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError("never ready")

    def end(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        status = self.process.wait(PATIENCE)
        self.reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextmanager
def started(
    *arguments: str,
    ready: bool = True,
    command: Sequence[str] = (COMMAND,),
    cwd: Path | str | None = None,
    chosen: Mapping[str, str] = CHOSEN,
    pass_fds: Sequence[int] = (),
    **environment: str,
) -> Iterator[Service]:
    """A service that is stopped afterwards, however the test ends.

    `chosen` are settings that `environment` may replace; empty: the service chooses by itself.
    """
    service = Service(
        *arguments, command=command, cwd=cwd, chosen=chosen, pass_fds=pass_fds, **environment
    )
    try:
        if ready:
            service.wait_until_ready()
        yield service
    finally:
        service.end(signal.SIGINT)


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The embedded model and a random one, for all tests that only ask; alike on every CPU."""
    models = ("--model", "builtin:resnet20-cifar10", "--model", "random:resnet20")
    with started(*models, "--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium; until the module's end no test of it can run an event loop of its own."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@contextmanager
def visiting(
    browser: Browser, url: str, storage: dict[str, str] | None = None, **options: Any
) -> Iterator[Page]:
    """The page at `url`, with what the tab has stored; a complaint of the browser, a violated
    policy, or a request for another origin fails the test."""
    faults: list[str] = []
    with browser.new_context(**options) as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        for name, value in (storage or {}).items():
            page.add_init_script(f"sessionStorage.setItem({name!r}, {value!r})")

        def complained(message: Any) -> None:
            # Refusals, and a service that is gone, are what the tests ask for.
            asked_for = any(path in message.location["url"] for path in REFUSING)
            if message.type in {"error", "warning"} and not asked_for:
                faults.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.removeprefix("blob:").startswith(url):
                faults.append(request.url)

        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", complained)
        page.on("request", asked)
        page.goto(url)
        yield page
    assert not faults


def encoded(format: str = "PNG", size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """A colourful image in a file format."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format)
    return buffer.getvalue()
