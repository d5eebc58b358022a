"""OpenVINO computes, and reports to nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

# The interpreter itself reports what forks or reaches out. (PyTorch for CUDA runs a program.)
LISTENING = """
import sys
events = {"os.fork", "socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, args: print(event, args) if event in events else None)
"""
COMPUTING = """
import numpy as np
from service.engines import openvino
from service.engines.openvino_library import ov, ops
number = ops.parameter([1], ov.Type.f32)
network = ov.Model([ops.relu(number)], [number])
print(*ov.Core().compile_model(network, "CPU")(np.float32([-1]))[0])
"""


def printed(code: str) -> list[str]:
    command = [sys.executable, "-c", LISTENING + code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()


def test_importing_it_reaches_nobody() -> None:
    assert printed(COMPUTING) == ["0.0"]


def test_it_would_be_noticed() -> None:
    assert any(line.startswith("os.fork") for line in printed("import os\nos.fork()"))
