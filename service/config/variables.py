"""Environment variables. Nothing else reads them, but `models.processor` one of its own, and
`models.interchange.variables` those of downloads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from models.interchange import variables

PREFIX = "RESNET_SERVE_"
# The same prefix, but not settings: the file's path, a client's key, the tests' data, and the
# processor's flags.
NOT_SETTINGS = {"CONFIG", "KEY", "SHARED", "CPU_FLAGS"}
# Of platforms that start containers, and the settings for which they stand; the last one wins. See
# SageMaker's "Custom Inference Code with Hosting Services", and Vertex AI's "Custom container
# requirements for inference".
OF_PLATFORMS = {
    "SAGEMAKER_BIND_TO_PORT": "port",
    "AIP_HTTP_PORT": "port",
    "AIP_HEALTH_ROUTE": "vertex_health_route",
    "AIP_PREDICT_ROUTE": "vertex_predict_route",
}
# Nobody can create this folder, root included; the path itself says why.
NO_HOME = Path(os.devnull) / "no-home"


def environment(**more: str) -> dict[str, str]:
    """A copy of this process's environment, with `more`."""
    return dict(os.environ) | more


class Handed(NamedTuple):
    """What a service manager hands over, as it wrote it; see sd_listen_fds(3), sd_notify(3)."""

    process: str
    sockets: str
    names: str
    address: str


def take_handed() -> Handed:
    """The variables of a service manager, which children then do not see."""
    os.environ.pop("LISTEN_PIDFDID", None)
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
    return Handed(*(os.environ.pop(name, "") for name in names))


def settle_home() -> None:
    """Gives a user without a home, such as a container's, one that cannot be created.

    Libraries, OpenVINO's telemetry among them, look it up on import and raise if there is none;
    they cope with a home that they cannot write to.
    """
    try:
        Path.home()
    except RuntimeError:  # Neither HOME nor an entry in /etc/passwd.
        os.environ["HOME"] = str(NO_HOME)


def quieten_grpc() -> None:
    """Keeps gRPC's library from writing to stderr, as it does for each handshake that fails; to be
    called before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def default_cache_dir() -> Path:
    """In the user's cache. A missing home is logged like any folder that cannot be created."""
    settle_home()
    return variables.cache_dir()
