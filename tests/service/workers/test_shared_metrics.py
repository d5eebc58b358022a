from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.workers import shared_metrics
from service.workers.shared_metrics import FILE_BYTES, new_folder


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
    with pytest.raises(ConfigError, match=r"No space left on device.*set workers to 1"):
        new_folder(3)
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

shared = SharedMetrics(os.environ["PROMETHEUS_MULTIPROC_DIR"])
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
