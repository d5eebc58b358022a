"""What the processes of a service leave behind, and what they do without resources."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.workers.shared_metrics import KINDS
from tests.conftest import (
    CACHE,
    CHOSEN,
    COMMAND,
    Service,
    clean_environment,
    client,
    encoded,
    started,
)
from tests.e2e.test_endpoints import samples
from tests.e2e.test_runtime_models import ADMIN, WITH_KEY, delete, everywhere, put
from tests.e2e.test_start import handles
from tests.e2e.test_workers import all_ready, children, folder_of
from tests.support.waiting import until

MODEL = ("--model", "random:resnet20", "--engine", "eager")
# What only ever rises, as `rate()` takes for granted.
RISING = ("_total", "_bucket", "_count", "_sum")


def folders() -> set[Path]:
    parents = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return {folder for parent in parents for folder in parent.glob("resnet-serve-workers-*")}


@pytest.fixture(scope="module")
def pair() -> Iterator[Service]:
    """Two front ends and an engine process."""
    with started("--workers", "2", *MODEL, **WITH_KEY) as running:
        until(lambda: all_ready(running))
        yield running


def kill(service: Service, pid: int) -> None:
    """Kills a child and waits for its successor to serve."""
    count = len(children(service))
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in children(service) and len(children(service)) == count)
    until(lambda: all_ready(service))


def test_children_that_die_leave_no_metrics_behind_and_no_counter_falls(pair: Service) -> None:
    def files() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in folder_of(pair).glob("*.db")}

    def counted() -> dict[str, float]:
        for _ in range(20):
            client.post(f"{pair.url}/v1/classify", content=encoded())
        found = samples(pair)
        return {name: n for name, n in found.items() if name.partition("{")[0].endswith(RISING)}

    kill(pair, children(pair, "engine_process")[0])
    kill(pair, children(pair, "front_end")[0])
    until(lambda: len(files()) == 3 * len(KINDS))  # The one killed last has begun anew.
    before, first = files(), counted()
    for pid in [*children(pair, "front_end"), *children(pair, "engine_process")]:
        kill(pair, pid)
    latest = counted()
    assert not {name for name, value in first.items() if latest.get(name, 0) < value}
    until(lambda: files() == before)
    # But for statuses that it happened to see, a scrape is as long as it was.
    assert {name for name in latest.keys() - first.keys() if "requests_total" not in name} == set()
    images = 'resnet_serve_images_total{model="resnet20"}'
    assert latest[images] >= first[images] + 20


def test_processes_that_are_killed_together_leave_nothing_for_the_next_start() -> None:
    with started("--workers", "2", *MODEL) as service:
        pids, folder = [service.process.pid, *children(service)], folder_of(service)
        # None of them may notice that another has ended.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        service.process.wait()
    assert folder.exists()
    with started("--workers", "2", *MODEL) as service:
        assert not folder.exists()
        assert folder_of(service).exists()


@pytest.mark.slow
def test_sigterm_at_any_moment_of_the_start_ends_it_cleanly() -> None:
    began = time.monotonic()
    with started("--workers", "2", *MODEL):
        whole = time.monotonic() - began
    before = folders()
    failures = []
    for moment in range(20):
        process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--workers", "2", *MODEL],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment() | CHOSEN | {"RESNET_SERVE_CACHE_DIR": CACHE},
        )
        pid = process.pid
        until(lambda pid=pid: handles(pid, signal.SIGTERM))  # type: ignore[misc]
        time.sleep(whole * moment / 20)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        if process.returncode != 0 or "Traceback" in log or " ERROR " in log:
            failures.append((moment, process.returncode, log))
    assert not failures
    assert folders() <= before


@contextmanager
def without_files(pid: int) -> Iterator[None]:
    """The process can open no file meanwhile."""
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    first_free = next(fd for fd in range(len(used) + 1) if fd not in used)
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


def test_a_model_that_one_front_end_cannot_reach_is_not_served(pair: Service) -> None:
    starved, _ = children(pair, "front_end")
    with without_files(starved):
        answer = put(pair, "new", "random:resnet20")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        for word in ("nothing was changed", "new: cannot connect", "Too many open files", "retry"):
            assert word in answer.json()["detail"]
        # What served is served, though a front end that can open no file cannot reach it anew.
        replaced = put(pair, "resnet20", "random:resnet20")
        assert replaced.status_code == 503
    until(lambda: everywhere(pair, ["resnet20"]))
    until(lambda: all_ready(pair))
    assert client.post(f"{pair.url}/v1/classify", content=encoded()).status_code == 200
    assert sum("remote_engine: new: cannot connect" in line for line in pair.log) == 1
    assert put(pair, "new", "random:resnet20").status_code == 201
    assert everywhere(pair, ["resnet20", "new"])
    assert delete(pair, "new").status_code == 204


def test_a_child_that_cannot_be_started_is_tried_again(pair: Service) -> None:
    killed = children(pair, "front_end")[0]
    with without_files(pair.process.pid):
        os.kill(killed, signal.SIGKILL)
        until(lambda: any("cannot start: Too many open files" in line for line in pair.log))
    until(lambda: len(children(pair, "front_end")) == 2)
    until(lambda: all_ready(pair))


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [("max_queue", 10**13, "100000"), ("max_queue_bytes", 10**30, str(2**40))],
)
def test_a_queue_that_no_memory_holds_is_refused(
    pair: Service, field: str, value: int, limit: str
) -> None:
    row = {"spec": "random:resnet20", field: value}
    answer = client.put(f"{pair.url}/v1/models/large", json=row, headers=ADMIN)
    assert answer.status_code == 422
    assert field in answer.json()["detail"]
    assert limit in answer.json()["detail"].replace(",", "").replace("_", "")
