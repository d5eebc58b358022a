"""Engines, disks and memory that fail: the real process answers everybody, and tells the truth.

`tests/faults/sitecustomize.py` makes engines fail on command; the product knows nothing of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models import files
from tests.conftest import COMMAND, PATIENCE, Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_workers import all_ready, children, is_ready, load
from tests.support.waiting import until

FAULTS = Path(__file__).parents[1] / "faults"
REFUSED = 'resnet_serve_refusals_total{model="resnet20",reason="engine_failed"}'
ERRORS = 'resnet_serve_engine_errors_total{device="cpu",model="resnet20"}'
OUT_OF_MEMORY = 'resnet_serve_engine_out_of_memory_total{device="cpu",model="resnet20"}'


class Commanded:
    """A service, and the file that tells its engines how to fail."""

    def __init__(self, service: Service, commands: Path) -> None:
        self.service = service
        self._commands = commands

    def command(self, fault: str) -> None:
        # Whole at any moment: an engine may be reading.
        with files.atomic(self._commands) as file:
            file.write_text(fault)

    def live(self) -> tuple[int, str]:
        answer = client.get(f"{self.service.url}/health/live")
        return answer.status_code, " ".join(answer.json()["reasons"].values())

    def is_live(self) -> bool:
        return self.live()[0] == 200


@contextmanager
def commanded(folder: Path, *arguments: str, **environment: Any) -> Iterator[Commanded]:
    commands = folder / "commands"
    commands.write_text("")
    found = filter(None, (str(FAULTS), os.environ.get("PYTHONPATH")))
    with started(
        *("--model", "random:resnet20", "--engine", "eager", *arguments),
        ready=False,
        FAULTS=str(commands),
        PYTHONPATH=os.pathsep.join(found),
        **({"RESNET_SERVE_ENGINE_TIMEOUT_S": "1"} | environment),
    ) as service:
        until(lambda: all_ready(service), PATIENCE)
        yield Commanded(service, commands)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commanded]:
    """One process."""
    with commanded(tmp_path_factory.mktemp("one")) as running:
        yield running


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commanded]:
    """Two front ends and an engine process."""
    with commanded(tmp_path_factory.mktemp("several"), "--workers", "2") as running:
        yield running


def go_on(counts: Counter[Any], more: int = 20) -> None:
    """Waits until so many more requests have been answered with 200."""
    reached = counts[200]
    until(lambda: counts[200] > reached + more)


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{what} {time.monotonic() - started:.2f} s")


@pytest.mark.parametrize("fault", ["raise", pytest.param("nan", marks=pytest.mark.slow)])
def test_while_an_engine_fails_it_is_not_ready_and_then_it_is(one: Commanded, fault: str) -> None:
    with load(one.service) as counts:
        go_on(counts)
        one.command(fault)
        with timed(f"{fault}: not ready after"):
            until(lambda: not is_ready(one.service))
        until(lambda: counts[503] >= 8)
        assert one.is_live()
        reasons = client.get(f"{one.service.url}/health/ready").json()["reasons"]
        assert "the engine failed" in reasons["resnet20"]
        one.command("")
        with timed(f"{fault}: ready again after"):
            until(lambda: is_ready(one.service))
        go_on(counts)
    assert set(counts) == {200, 503}


def test_one_batch_that_fails_is_computed_again_and_no_request_of_it_is_lost(
    one: Commanded,
) -> None:
    before = samples(one.service)
    with load(one.service) as counts:
        go_on(counts)
        one.command("once")
        go_on(counts)
    after = samples(one.service)
    assert after[ERRORS] == before[ERRORS] + 1
    assert after[REFUSED] == before[REFUSED]
    assert set(counts) <= {200, 503}  # Who came while it was probed.


def test_without_memory_for_a_batch_it_is_computed_in_halves(one: Commanded) -> None:
    one.command("oom 1")
    with load(one.service) as counts:
        until(lambda: samples(one.service)[OUT_OF_MEMORY] >= 1)
        assert is_ready(one.service)
        go_on(counts)
    assert set(counts) == {200}
    one.command("")
    card = client.get(f"{one.service.url}/v1/models/resnet20").json()
    assert list(card["batch_ms"]) == ["1"]


def test_while_an_engine_hangs_the_process_says_that_it_must_be_replaced(one: Commanded) -> None:
    with load(one.service) as counts:
        go_on(counts)
        one.command("hang")
        with timed("hang: given up, with a timeout of 1 s, after"):
            until(lambda: not one.is_live())
        assert "has not returned" in one.live()[1]
        assert not is_ready(one.service)
        until(lambda: counts[503] >= 16)
        assert counts[504] == 0
        one.command("")
        with timed("hang: ready again after"):
            until(lambda: is_ready(one.service))
        assert one.is_live()
        go_on(counts)
    assert set(counts) == {200, 503}


def test_a_process_whose_device_is_lost_says_that_it_must_be_replaced(one: Commanded) -> None:
    """The last one of this process."""
    with load(one.service) as counts:
        go_on(counts)
        one.command("cuda")
        with timed("poisoned context: not live after"):
            until(lambda: not one.is_live())
        assert "an illegal memory access was encountered" in one.live()[1]
        assert "CUDA kernel errors" not in one.live()[1]
        with timed("poisoned context: the next 16 refusals took"):
            until(lambda: counts[503] >= 16)
    assert set(counts) == {200, 503}
    assert not is_ready(one.service)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "cuda"])
def test_an_engine_process_that_cannot_recover_is_replaced(several: Commanded, fault: str) -> None:
    service = several.service
    front_ends = children(service, "front_end")
    (engine,) = children(service, "engine_process")
    with load(service) as counts:
        go_on(counts)
        several.command(fault)
        with timed(f"{fault}: replaced after"):
            until(lambda: children(service, "engine_process") not in ([], [engine]))
        several.command("")
        assert not is_ready(service)
        assert several.is_live()
        with timed(f"{fault}: ready again after"):
            until(lambda: all_ready(service))
        go_on(counts)
    assert set(counts) == {200, 503}
    assert children(service, "front_end") == front_ends
    assert any(f"({engine}) ended with status 70" in line for line in service.log)


@pytest.mark.slow
def test_a_failure_that_passes_leaves_the_engine_process_as_it_is(several: Commanded) -> None:
    service = several.service
    processes = children(service)
    with load(service) as counts:
        go_on(counts)
        several.command("raise")
        with timed("raise: not ready, of two front ends, after"):
            until(lambda: not is_ready(service))
        until(lambda: counts[503] >= 8)
        assert several.is_live()
        several.command("")
        until(lambda: all_ready(service))
        before = samples(service)[REFUSED]
        several.command("once")
        go_on(counts)
        assert samples(service)[REFUSED] == before
    assert set(counts) == {200, 503}
    assert children(service) == processes


def cannot_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return True
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode != 0


@contextmanager
def serving(cache: Path, *wrapper: str) -> Iterator[Service]:
    """A service started by a wrapper; it must serve."""
    with started(
        *("--model", "random:resnet20"),
        command=(*wrapper, COMMAND),
        RESNET_SERVE_CACHE_DIR=str(cache),
    ) as service:
        answer = client.post(f"{service.url}/v1/classify", content=encoded())
        assert answer.status_code == 200
        yield service
    assert not any("Traceback" in line for line in service.log)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_what_cannot_be_written_is_not_kept_and_it_serves(tmp_path: Path) -> None:
    with serving(tmp_path, "prlimit", "--fsize=4096") as service:
        (line,) = [line for line in service.log if "cannot cache" in line]
        assert "File too large" in line
        # What fitted is whole, and of what did not nothing is left.
        assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}


@pytest.mark.slow
@pytest.mark.skipif(cannot_mount(), reason="needs the right to mount")
@pytest.mark.parametrize(
    ("options", "words"),
    [("ro", "read-only"), ("size=64k", "No space left")],
)
def test_a_cache_on_a_read_only_or_full_disk_is_one_line(
    tmp_path: Path, options: str, words: str
) -> None:
    mount = f'mount -t tmpfs -o {options} none {tmp_path} && exec "$@"'
    with serving(tmp_path, "unshare", "-m", "sh", "-c", mount, "sh") as service:
        (line,) = [line for line in service.log if " WARNING " in line]
        assert words in line


@pytest.mark.slow
@pytest.mark.skipif(cannot_mount(), reason="needs the right to mount")
def test_several_processes_start_where_shared_memory_is_full(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    wrapper = ("unshare", "-m", "sh", "-c", mount, "sh", COMMAND)
    with started("--workers", "2", "--model", "random:resnet20", command=wrapper) as service:
        answer = client.post(f"{service.url}/v1/classify", content=encoded())
        assert answer.status_code == 200
        assert "resnet_serve_images_total" in client.get(f"{service.url}/metrics").text
