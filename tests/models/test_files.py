"""A file is there whole or not at all, with the permissions of any other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from models import files


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with files.atomic(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to("elsewhere/file")
    with files.atomic(link) as temporary:
        assert temporary.parent == target.parent, "on its file system"
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_decides_permissions_whatever_a_library_does(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with files.atomic(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_bytes_are_on_the_disk_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synchronise(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def rename(source: Path, target: Path) -> Path:
        events.append("renamed")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "replace", rename)
    with files.atomic(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert events == [str(temporary), "renamed", str(tmp_path)]


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synchronised_is_none_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    fsync = os.fsync

    def synchronise(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synchronise)
    (tmp_path / "source").write_text("new")
    if raises:
        with pytest.raises(OSError, match=os.strerror(number)):
            files.move(tmp_path / "source", tmp_path / "target")
    else:
        files.move(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"


def test_a_folder_that_is_not_there_is_what_the_error_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"), files.atomic(tmp_path / "none" / "file"):
        pass


HOLDING = """
import sys, time
from contextlib import suppress
from pathlib import Path
from models import files
with files.scratch(sys.argv[1], Path(sys.argv[2])) as folder:
    (folder / "large").write_text("large")
    print(folder, flush=True)
    time.sleep(600)
"""


def holder(kind: str, parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, kind, str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        return process, Path(lines.readline().strip())


def test_a_temporary_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    killed, abandoned = holder("work", tmp_path)
    living, used = holder("work", tmp_path)
    other = tmp_path / "resnet-serve-other-abc"
    other.mkdir()
    link = tmp_path / "resnet-serve-work-link"
    link.symlink_to(other)
    try:
        killed.kill()
        killed.wait()
        assert abandoned.exists()
        with files.scratch("work", tmp_path) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert not abandoned.exists()
            assert (used / "large").exists()
        assert not folder.exists()
        assert other.exists()
    finally:
        living.kill()
        living.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_temporary_folder_of_another_user_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "resnet-serve-work-theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with files.scratch("work", tmp_path):
        assert theirs.exists()
    assert theirs.exists()


def test_the_last_to_leave_a_shared_folder_removes_it(tmp_path: Path) -> None:
    with files.shared("test", tmp_path) as first:
        with files.shared("test", tmp_path) as second, files.scratch("test", tmp_path):
            (second / "file").touch()
        assert (first / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    with files.shared("test", tmp_path) as shared:
        (shared / "file").touch()
        shared.chmod(0o777)
        with files.shared("test", tmp_path) as own:
            assert own != shared
        assert (shared / "file").exists()


def test_many_that_begin_at_once_take_no_folder_from_each_other(tmp_path: Path) -> None:
    lost: list[Path] = []

    def use() -> None:
        for _ in range(40):
            with files.scratch("work", tmp_path) as folder:
                time.sleep(0.001)
                if not folder.exists():
                    lost.append(folder)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, threading
from contextlib import suppress
from pathlib import Path
from models import files

def write(letter):
    for _ in range(20):
        with files.atomic(Path(sys.argv[1])) as file, file.open("wb") as opened:
            for _ in range(64):
                opened.write(letter * 1024)
                opened.flush()

threads = [threading.Thread(target=write, args=(bytes([each]),)) for each in sys.argv[2].encode()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_overlapping_writes_of_threads_and_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letters]) for letters in ("abcd", "efgh")]
    seen = set[str]()
    while any(writer.poll() is None for writer in writers):
        with suppress(FileNotFoundError):
            content = path.read_text()
            seen.add(content[0])
            assert content == content[0] * 64 * 1024
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(seen) > 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_read_to_its_end_while_something_writes_to_it() -> None:
    # As a shell's <(...) hands it over.
    reading, writing = os.pipe()
    writer = threading.Thread(target=_write, args=(writing, b"a key"))
    writer.start()
    try:
        assert files.read(Path(f"/dev/fd/{reading}")) == b"a key"
    finally:
        writer.join()
        os.close(reading)


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        for byte in content:
            pipe.write(bytes([byte]))


def test_a_pipe_to_which_nothing_writes_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a pipe to which nothing writes; name a file") as caught:
        files.read(pipe)
    assert caught.value.filename == str(pipe)


def test_a_device_is_not_read_without_end() -> None:
    with pytest.raises(OSError, match="a device without an end; name a file"):
        files.read(Path("/dev/zero"))
    assert files.read(Path("/dev/null")) == b""


def test_what_is_read_more_than_once_must_be_a_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            files.check_regular(path)
    for path in (tmp_path, tmp_path / "nowhere", Path(__file__)):  # Others say what is wrong.
        files.check_regular(path)


def test_text_has_the_line_ends_of_this_system(tmp_path: Path) -> None:
    (path := tmp_path / "card.md").write_bytes("ä\r\nb\rc\n".encode())
    assert files.read_text(path) == path.read_text("utf-8") == "ä\nb\nc\n"
