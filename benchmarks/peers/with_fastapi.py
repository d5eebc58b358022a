"""A FastAPI service as one writes it by hand.

tutorial: a plain `def` endpoint, which FastAPI runs in its thread pool; one image a forward, as
FastAPI has no batching.
tuned: images decoded in threads; one engine thread takes whatever waits as its next batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from benchmarks.peers import network
from benchmarks.peers.network import Network

Row = NDArray[np.float32]
RawImage = Annotated[bytes, Body(media_type="application/octet-stream")]


def tutorial() -> FastAPI:
    app = FastAPI()
    served = network.load()

    @app.post("/classify")
    def classify(image: RawImage) -> dict[str, Any]:
        return served.answer(served.infer([served.prepare(image)])[0])

    return app


class Batcher:
    """Takes prepared images one by one and gives their rows; computes what waits, at most 32."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[Row]]] = asyncio.Queue()
        self._engine = ThreadPoolExecutor(1)
        self._decoders = ThreadPoolExecutor(network.DECODE_THREADS)
        # The engine belongs to its one thread, which therefore builds it.
        self.served: Network = self._engine.submit(network.load).result()

    async def classify(self, data: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._decoders, self.served.prepare, data)
        row: asyncio.Future[Row] = loop.create_future()
        self._waiting.put_nowait((prepared, row))
        return self.served.answer(await row)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < network.MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            images = [image for image, _ in batch]
            try:
                rows = await loop.run_in_executor(self._engine, self.served.infer, images)
            except Exception as error:  # noqa: BLE001
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), row in zip(batch, rows, strict=True):
                    if not future.done():
                        future.set_result(row)


def tuned() -> FastAPI:
    batcher = Batcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        return JSONResponse(await batcher.classify(await request.body()))

    return app


if __name__ == "__main__":
    if network.VARIANT == "tuned":
        uvicorn.run(tuned(), host=network.HOST, port=network.PORT, access_log=False)
    else:
        uvicorn.run(tutorial(), host=network.HOST, port=network.PORT)
