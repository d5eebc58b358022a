from __future__ import annotations

import subprocess
from importlib.metadata import version

from tests.conftest import COMMAND


def test_the_installed_command_tells_its_version() -> None:
    said = subprocess.check_output([COMMAND, "--version"], text=True)
    assert version("resnet-serve") in said
