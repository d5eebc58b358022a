from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.http import unix_socket
from service.http.unix_socket import bind


def refusal(path: Path) -> str:
    before = path.lstat() if path.exists() else None
    with pytest.raises(ConfigError) as caught:
        bind(str(path), 0o660, 10)
    if before is not None:
        assert path.lstat().st_ino == before.st_ino
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"host: cannot listen on unix:{path}: ")


def dead(path: Path) -> None:
    """The file of a service that was killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_the_file_has_the_permissions_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    before = os.umask(0o077)
    try:
        listener, _ = bind(str(path), mode, 10)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_socket_of_a_dead_service_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead(path)
    listener, file = bind(str(path), 0o660, 10)
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        file.remove()
        assert not path.exists()
        file.remove()


def test_the_socket_of_a_living_service_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener, _ = bind(str(path), 0o660, 0)
    with listener:
        assert refusal(path).startswith("another process listens there; ")
        # Nor where so many wait that no more may; those who asked have left, but wait too.
        assert refusal(path).startswith("another process listens there; ")
        assert refusal(path).startswith("another process listens there; ")


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("x")
    folder.mkdir()
    dead(tmp_path / "dead")
    link.symlink_to(tmp_path / "dead")
    for path in (file, folder, link):
        assert "not a socket" in refusal(path)
    assert file.read_text() == "x"
    assert link.is_symlink()


def test_a_socket_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert refusal(path) == "Protocol wrong type for socket"


def test_where_no_file_can_be_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere" / "s") == "No such file or directory"
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file" / "s") == "Not a directory"


def test_the_file_of_another_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, file = bind(str(path), 0o660, 10)
    path.unlink()
    second, _ = bind(str(path), 0o660, 10)
    with first, second:
        file.remove()
        assert path.exists()


def test_a_relative_path_is_removed_from_wherever_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener, file = bind("s", 0o660, 10)
    with listener:
        monkeypatch.chdir("/")
        file.remove()
        assert not (tmp_path / "s").exists()


def test_of_many_that_find_a_dead_socket_one_listens(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead(path)
    bound: list[socket.socket] = []
    refused: list[str] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        try:
            bound.append(bind(str(path), 0o660, 10)[0])
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (listener,) = bound
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert len(refused) == 7
    assert all("another process listens there" in line for line in refused)


def test_whoever_locks_the_folder_holds_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "LOCK_SECONDS", 0.0)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        bind(str(tmp_path / "s"), 0o660, 10)[0].close()
    finally:
        os.close(descriptor)
