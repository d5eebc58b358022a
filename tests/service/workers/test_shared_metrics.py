from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.config.variables import environment
from service.errors import ConfigError
from service.workers import shared_metrics
from service.workers.shared_metrics import (
    FILE_BYTES,
    KINDS,
    MergedCollector,
    new_folder,
    remove_gauges,
)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of memory, a folder."""
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr(shared_metrics, "MEMORY", place)
    return place


def test_the_files_are_in_memory_and_gone_afterwards(memory: Path) -> None:
    with new_folder(3) as folder:
        assert Path(folder).parent == memory
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert not list(Path(folder).iterdir())
    assert not list(memory.iterdir())


def test_where_memory_has_no_room_a_disk_is_taken(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, asked = os.posix_fallocate, []

    def without_room(fd: int, start: int, size: int) -> None:
        asked.append(size)
        if Path(f"/proc/self/fd/{fd}").resolve().is_relative_to(memory):
            raise OSError(28, "No space left on device")
        usual(fd, start, size)

    monkeypatch.setattr(os, "posix_fallocate", without_room)
    with new_folder(3) as folder:
        assert not Path(folder).is_relative_to(memory)
    assert asked == [3 * 5 * FILE_BYTES] * 2
    assert not list(memory.iterdir())


def test_without_any_room_one_line_says_what_to_do(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_room(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", without_room)
    with (
        pytest.raises(ConfigError, match=r"No space left on device.*set workers to 1"),
        new_folder(3),
    ):
        pass
    assert not list(memory.iterdir())


SEVERAL = """
import os, sys
from service import metrics
from service.workers.shared_metrics import SharedMetrics

def serve(shared, name):
    shared.watch_model(name, ["cpu"], limit=7, depth=lambda: 0, ready=lambda: True)
    shared.classified(name, dict.fromkeys(metrics.PHASES, 0.01))

def named(shared):
    return sorted(shared.counted())

shared = SharedMetrics(os.environ["PROMETHEUS_MULTIPROC_DIR"], sys.argv[1])
serve(shared, sys.argv[1])
if sys.argv[2:]:  # The last of the processes: it knows nothing of the models of those before it.
    serve(shared, "old")
    shared.unwatch_model("old")
    print(*named(shared))
    metrics.time = type(metrics.time)("later")
    from time import monotonic
    metrics.time.monotonic = lambda: monotonic() + metrics.GONE_SECONDS + 1
    print(*named(shared))
    serve(shared, "old")
    print(*named(shared), shared.counted()["old"]["resnet_serve_images_total"])
"""


def test_models_that_are_gone_end_in_the_scrape_of_every_process(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for arguments in (["before"], ["now", "last"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SEVERAL, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before now old", "now", "now old 2.0"]


WRITING = """
import itertools, sys
from service.metrics import PHASES
from service.workers.shared_metrics import SharedMetrics

metrics = SharedMetrics(sys.argv[1], "front-1")
metrics.watch_model("a", (), 1, lambda: 0, lambda: True)
print("begun", flush=True)
for number in itertools.count():
    metrics.responded("/", 200)
    metrics.classified("a", dict.fromkeys(PHASES, 0.01))
    metrics.refused(f"{sys.argv[2]}-{number % 50}", "queue_full")  # series of its own
"""


def counted(folder: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    MergedCollector(registry, str(folder), lambda models: set())
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def killed_while_it_writes(folder: Path, name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(folder), name],
        stdout=subprocess.PIPE,
        env=environment(PROMETHEUS_MULTIPROC_DIR=str(folder)),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(random.random() / 50)
        process.kill()


def test_the_successor_of_a_killed_process_counts_on_in_its_files(tmp_path: Path) -> None:
    killed_while_it_writes(tmp_path, "first")
    files, before = sorted(tmp_path.iterdir()), counted(tmp_path)
    assert len(files) == len(KINDS)
    for number in range(6):
        remove_gauges(str(tmp_path), "front-1")
        assert len(list(tmp_path.iterdir())) == 2
        killed_while_it_writes(tmp_path, "first" if number % 2 else "second")
        after = counted(tmp_path)
        assert not {name for name, value in before.items() if after[name] < value}
        assert after["resnet_serve_images_total[('model', 'a')]"] > 0
        before = after
        assert sorted(tmp_path.iterdir()) == files
    assert {path.stat().st_size for path in files} == {FILE_BYTES}


def test_files_that_a_successor_cannot_read_are_begun_anew(tmp_path: Path) -> None:
    killed_while_it_writes(tmp_path, "first")
    path = tmp_path / "counter_front-1.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\xff" * 64 + whole[72:])
    killed_while_it_writes(tmp_path, "first")
    assert counted(tmp_path)["resnet_serve_requests_total[('route', '/'), ('status', '200')]"] > 0
    histogram = "resnet_serve_phase_seconds_count[('model', 'a'), ('phase', 'total')]"
    assert counted(tmp_path)[histogram] > 0


@pytest.mark.slow
def test_a_process_without_files_keeps_what_it_counted(tmp_path: Path) -> None:
    """Its own usage cannot be read; it neither falls to nothing nor is counted twice."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    name = "process_cpu_seconds_total[]"
    assert 0 < counted(tmp_path)[name] < 60
    assert counted(tmp_path)[name] == pytest.approx(float(done.stdout), abs=1)


STARVED = """
import os, resource, sys, time
from service.workers.shared_metrics import SharedMetrics

metrics = SharedMetrics(sys.argv[1], "front-1")
end = time.process_time() + 3
while time.process_time() < end:
    pass
metrics.refresh()
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
for _ in range(3):
    metrics.refresh()
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
metrics.refresh()
print(time.process_time())
"""
