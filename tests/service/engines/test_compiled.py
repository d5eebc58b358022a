"""The process that compiles a network ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common.process import processes

COMPILING = """
from models.architecture import Architecture
from models import bundle
from models.preprocess import CIFAR
from service.engines.blueprint import Blueprint
from service.engines.compiled import compiled

stages = {"blocks": (9, 9, 9), "planes": (16, 32, 64)}
deep = Architecture(block="basic", **stages, stem="small", num_classes=3)
compiled(Blueprint(bundle.untrained(deep, "deep", CIFAR), "cpu", "fp32", 2, 1, 0.0, None))
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
