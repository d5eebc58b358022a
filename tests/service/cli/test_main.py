"""The installed command, whatever its standard streams are."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import COMMAND, clean_environment


def test_the_installed_command_tells_its_version() -> None:
    said = subprocess.check_output([COMMAND, "--version"], text=True)
    assert version("resnet-serve") in said


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("config show >&- 2>&- <&-", 0, ""),
        ("config schema > /dev/full", 1, f"resnet-serve: stdout: {FULL}\n"),
        ("config show > /dev/full", 2, f"resnet-serve: {FULL}\n"),
        ("config schema | head -1", 0, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_ends_in_no_traceback(
    line: str, status: int, said: str
) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr.decode()) == (status, said)


def test_a_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.yaml"
    Path(os.fsdecode(path)).write_text("port: 0\n")
    done = shell('config check --config "$0"', path)
    assert done.stderr == b""
    assert b"/caf\\udce9.yaml: ok; serves " in done.stdout


def shell(line: str, *arguments: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f"'{COMMAND}' {line}", *arguments],
        capture_output=True,
        check=False,
        env=clean_environment(),
    )
