"""Compiling in a process of its own, and what keeps a compiled network from being executed."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.process import processes
from models import bundling
from models.architecture import Architecture
from models.preprocess import CIFAR
from service.engines import cache, compiled
from service.engines.blueprint import Blueprint

COMPILING = """
from models.architecture import Architecture
from models import bundle
from models.preprocess import CIFAR
from service.engines.blueprint import Blueprint
from service.engines.compiled import compiled

stages = {"blocks": (9, 9, 9), "planes": (16, 32, 64)}
deep = Architecture(block="basic", **stages, stem="small", num_classes=3)
compiled(Blueprint(bundling.untrained(deep, "deep", CIFAR), "cpu", "fp32", 2, 1, 0.0, None))
"""


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def compiling(pids: list[int]) -> list[int]:
    """Those that compile, or were started by what does."""
    return [pid for pid in pids if command_of(pid)]


@pytest.mark.slow
def test_the_compiler_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", COMPILING], env=environment)
    try:
        until = time.monotonic() + 60
        # The weights are the last that it writes before it starts the compiler.
        while not list(tmp_path.glob("resnet-serve-*/weights.safetensors")):
            assert time.monotonic() < until
            assert parent.poll() is None
            time.sleep(0.05)
        # Until it has imported torch, and compiles.
        time.sleep(5)
        children = processes(parent.pid)[1:]
        assert any("service.engines.compiler" in command_of(pid) for pid in children)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until = time.monotonic() + 10
    while compiling(children):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A folder from which nothing can be executed."""
    folder = tmp_path / "noexec"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, and a container that may mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def planned(cache_dir: Path | None = None) -> Blueprint:
    stages: dict[str, Any] = {"blocks": (1,), "planes": (8,)}
    tiny = Architecture(block="basic", **stages, stem="small", num_classes=3)
    untrained = bundling.untrained(tiny, "tiny", CIFAR)
    return Blueprint(untrained, "cpu", "fp32", 2, 1, 0.0, cache_dir)


def test_a_folder_where_nothing_can_be_executed_is_told_before_compiling(
    noexec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(noexec))
    with pytest.raises(RuntimeError) as raised:
        compiled.compiled(planned())
    assert str(raised.value) == (
        f"{noexec} is mounted noexec; torch executes a compiled network from the folder for "
        "temporary files: set TMPDIR to a folder where that is allowed"
    )


def test_what_cannot_be_executed_here_is_not_corrupt(noexec: Path, tmp_path: Path) -> None:
    library = Path(_ctypes.__file__)
    kept = tmp_path / "kept.so"
    shutil.copyfile(library, kept)

    def read(path: Path) -> object:
        return ctypes.CDLL(str(shutil.copyfile(path, noexec / "library.so")))

    with pytest.raises(OSError, match="failed to map segment"):
        cache.load(kept, read)
    kept.write_bytes(b"no library")
    assert cache.load(kept, read) is None
    assert not kept.exists()


def test_torch_is_told_where_it_may_execute_what_it_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the folder's flags do not say so."""

    def load(path: str) -> None:
        raise RuntimeError(
            "Error in dlopen: /tmp/aotinductor_EJtUdq/c2vv.wrapper.so: failed to map segment from "
            "shared object\nException raised from DynamicLibrary"
        )

    here = planned(tmp_path)
    kept = here.cached("compiled", ".pt2", compiled.FORM, 1)
    assert kept is not None
    kept.touch()
    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    with pytest.raises(RuntimeError, match=r"dlopen: .* shared object; torch .* set TMPDIR"):
        compiled.compiled(here)
    assert kept.exists()


def test_a_compiler_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = tmp_path / "python"
    hung.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid; sleep 300 & wait\n")
    hung.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hung))
    monkeypatch.setattr(compiled, "MOST_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match="has not compiled it within"):
        compiled.compiled(planned())
    group = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < until
        time.sleep(0.01)
