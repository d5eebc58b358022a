"""A Ray cluster of several nodes on this machine, each with a raylet of its own, on loopback.

Its engines do as `tests/faults/sitecustomize.py` is told, so that a slow one can be had.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from models import files

ROOT = Path(__file__).parents[2]
APPLICATION = "resnet-serve"
STORE_BYTES = 80 * 2**20
PATIENCE_SECONDS = 300
# Ray reads them when it is imported, and every process of the cluster inherits them.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Of loopback addresses, as on those.
    # Where all processes share few CPUs.
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",  # After 5 s it would end the proxy.
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Looked at more often than by default, so that scaling shows within seconds.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.ray.proxy:middlewares",
}


class Nodes:
    """`url` is where the one HTTP proxy listens, on the first node."""

    def __init__(self, cpus: int, commands: Path) -> None:
        from ray.cluster_utils import Cluster

        self._commands = commands
        self.command("")
        self._node = {"num_cpus": cpus, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, count: int) -> None:
        import ray
        from ray import serve

        self.add(include_dashboard=False, _system_config={"metrics_report_interval_ms": 1000})
        for _ in range(count - 1):
            self.add()
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="warning")
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": self._port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )

    def add(self, **more: Any) -> Any:
        """Another node."""
        from ray._private import services

        known = services.get_node

        def patient(address: str, node: str) -> Any:
            end = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    return known(address, node)
                except RuntimeError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)

        # Ray gives a node 30 seconds, which are too few where all processes share few CPUs.
        services.get_node = patient
        try:
            return self.cluster.add_node(**self._node, **more)
        finally:
            services.get_node = known

    def command(self, fault: str) -> None:
        """What engines do from now on; nothing: what they should."""
        # Whole at any moment: an engine may be reading.
        with files.atomic(self._commands) as file:
            file.write_text(fault)

    @property
    def forwards(self) -> int:
        """How many all engines have begun, those of their warm-up among them."""
        return self._commands.with_suffix(".forwards").stat().st_size

    def deploy(self, settings: dict[str, Any], wait: bool = True, **options: Any) -> None:
        """Does as `serve deploy` with our YAML, but for the settings and deployments' options."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
        del config["http_options"], config["proxy_location"]
        (application,) = config["applications"]
        application["args"] = settings
        application["deployments"] = [{"name": name, **each} for name, each in options.items()]
        client = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
        if wait:
            until(self.settled, self.told)

    def told(self) -> Any:
        """What Ray says of the application."""
        from ray import serve

        return serve.status().applications[APPLICATION]

    def settled(self) -> bool:
        """Whether every deployment is as it was asked to be.

        Raises:
            AssertionError: it cannot be.
        """
        told = self.told()
        assert told.status != "DEPLOY_FAILED", told
        deployments = told.deployments.values()
        return told.status == "RUNNING" and all(each.status == "HEALTHY" for each in deployments)

    def replicas(self, name: str) -> int:
        """Replicas of a deployment that serve."""
        return int(self.told().deployments[name].replica_states.get("RUNNING", 0))

    def close(self) -> None:
        import ray
        from ray import serve

        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        self.cluster.shutdown()


@contextmanager
def nodes(count: int, cpus: int, folder: Path) -> Iterator[Nodes]:
    """A cluster of so many nodes with so many CPUs each, as far as Ray knows."""
    before = dict(os.environ)
    commands = folder / "commands"
    path = filter(None, (str(ROOT / "tests" / "faults"), os.environ.get("PYTHONPATH")))
    os.environ.update(ENVIRONMENT, FAULTS=str(commands), PYTHONPATH=os.pathsep.join(path))
    running = Nodes(cpus, commands)
    try:
        running.start(count)
        yield running
    finally:
        running.close()
        os.environ.clear()
        os.environ.update(before)


def until(done: Callable[[], bool], told: Callable[[], Any] = lambda: "it did not happen") -> None:
    """Waits for `done`; if it takes too long, `told` says what there is instead."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < end, told()
        time.sleep(0.2)
