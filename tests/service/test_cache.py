from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

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
        cache.keep(path, lambda other: other.write_bytes(b"second"))
        assert path.read_bytes() == b"second"
        in_pod("a")

    in_pod("a")
    cache.keep(path, slowly)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
