from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.config.loading import load
from service.engines import cache


def test_pods_that_share_a_volume_do_not_write_into_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"

    def in_pod(name: str) -> None:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=name))

    def slowly(part: Path) -> None:
        part.write_bytes(b"first")
        in_pod("b")
        cache.store(path, lambda other: other.write_bytes(b"second"))
        assert path.read_bytes() == b"second"
        in_pod("a")

    in_pod("a")
    cache.store(path, slowly)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_user_without_a_home_keeps_nothing_and_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "")  # So that it is put back.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    settings = load(environ={})
    cache.folder.cache_clear()
    assert cache.folder(settings.cache_dir) is None
    assert cache.folder(settings.cache_dir) is None
    (line,) = caplog.messages
    where = "/dev/null/no-home/.cache/resnet-serve"
    assert line == f"caching is off: cache_dir {where}: Not a directory"
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert load(environ={}).cache_dir == Path("/there/resnet-serve")
