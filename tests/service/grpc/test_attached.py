"""When gRPC's library is imported, and what is said if it cannot be."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ConfigError
from service.grpc.attached import grpc_server

NOBODY: Any = SimpleNamespace()


def test_without_addresses_the_library_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from service.grpc.attached import grpc_server\n"
        "assert grpc_server(None, []) is None\n"
        "assert not {'grpc', 'google.protobuf'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.grpc.endpoint", None)
    with pytest.raises(
        ConfigError, match=r"^grpc_port: gRPC cannot be imported .*pip install .*grpcio"
    ):
        grpc_server(NOBODY, ["127.0.0.1:1"])
