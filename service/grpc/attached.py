"""The gRPC server of a process that serves HTTP; its library is imported only if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.extras import install
from service.config.variables import quieten_grpc
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.http.server import AttachedServer
    from service.http.services import Services


def grpc_server(services: Services, addresses: Sequence[str]) -> AttachedServer | None:
    """A server of `addresses`, HOST:PORT, that has not started; None without addresses.

    Raises:
        ConfigError: the library cannot be imported, or the certificate cannot be read.
    """
    if not addresses:
        return None
    quieten_grpc()
    try:
        from service.grpc.endpoint import GrpcServer  # noqa: PLC0415
    except ImportError as error:
        why = f"grpc_port: gRPC cannot be imported ({error}); {install('grpc')}"
        raise ConfigError(why) from None
    return GrpcServer(services, addresses)
