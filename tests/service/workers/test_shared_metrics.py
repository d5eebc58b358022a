from __future__ import annotations

import os
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
    with (
        pytest.raises(ConfigError, match=r"No space left on device.*set workers to 1"),
        new_folder(3),
    ):
        pass
    assert not list(memory.iterdir())
