"""Ray Serve: a deployment with `@serve.batch`, one replica, as its guides show an image model.

https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html and performance.html
tutorial: the batched method decodes and computes in the replica's event loop; waits 10 ms.
tuned: decoding in threads, the engine in a thread of its own, so that the replica goes on
accepting; no waiting, as requests gather while the engine works; RAY_SERVE_THROUGHPUT_OPTIMIZED.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request

from benchmarks.peers import network


class Tutorial:
    def __init__(self) -> None:
        self.network = network.load()

    @serve.batch(max_batch_size=network.MAX_BATCH, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        rows = self.network.infer([self.network.prepare(image) for image in images])
        return [self.network.answer(row) for row in rows]

    async def __call__(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self.classify(await request.body())
        return answer


class Tuned:
    def __init__(self) -> None:
        self.engine = ThreadPoolExecutor(1)
        self.decoders = ThreadPoolExecutor(network.DECODE_THREADS)
        # The engine belongs to its one thread, which therefore builds it.
        self.network = self.engine.submit(network.load).result()

    @serve.batch(max_batch_size=network.MAX_BATCH, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def infer(self, prepared: list[Any]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self.engine, self.network.infer, prepared))

    async def __call__(self, request: Request) -> dict[str, Any]:
        data = await request.body()
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self.decoders, self.network.prepare, data)
        return self.network.answer(await self.infer(prepared))


def only_loopback() -> None:
    """Run by every worker first: a replica's own gRPC port has no setting for its address."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_local_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", network.HOST))

    replica.add_port_to_grpc_server = add_local_port


def main() -> None:
    stopping = threading.Event()
    # Sockets below it must stay under 108 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            address="local",
            num_cpus=network.CPUS,
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            _temp_dir=folder,
            runtime_env={"worker_process_setup_hook": "benchmarks.peers.with_ray.only_loopback"},
        )
        try:
            serve.start(http_options=HTTPOptions(host=network.HOST, port=network.PORT))
            deployment = serve.deployment(
                Tuned if network.VARIANT == "tuned" else Tutorial,
                # More than a batch, or no batch would ever be full: the default is 5.
                max_ongoing_requests=4 * network.MAX_BATCH,
                ray_actor_options={"num_cpus": max(1, network.CPUS - 1)},
            )
            serve.run(deployment.bind(), route_prefix="/classify")
            # After ray.init, which sets a handler of its own.
            signal.signal(signal.SIGTERM, lambda *_: stopping.set())
            stopping.wait()
            serve.shutdown()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
