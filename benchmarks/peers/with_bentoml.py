"""BentoML: one service with an adaptively batched API.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
A batched API takes lists, so the image comes as a form with the field `images`.
tutorial: PIL images decoded and computed in the API's thread.
tuned: a batch's images decoded by several threads, the engine in a thread of its own; no access
log.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
from PIL import Image

from benchmarks.peers import network


def bytes_of(image: Image.Image) -> bytes:
    """The bytes of an image that is opened and not yet decoded."""
    file: Any = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    data: bytes = file.read()
    return data


@bentoml.service(workers=1, threads=1)
class Tutorial:
    def __init__(self) -> None:
        self.network = network.load()

    @bentoml.api(batchable=True, max_batch_size=network.MAX_BATCH)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        rows = self.network.infer([self.network.prepare(bytes_of(image)) for image in images])
        return [self.network.answer(row) for row in rows]


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Tuned:
    def __init__(self) -> None:
        self.engine = ThreadPoolExecutor(1)
        self.decoders = ThreadPoolExecutor(network.DECODE_THREADS)
        # The engine belongs to its one thread, which therefore builds it.
        self.network = self.engine.submit(network.load).result()

    @bentoml.api(batchable=True, max_batch_size=network.MAX_BATCH)  # type: ignore[untyped-decorator]
    async def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(
            *(
                loop.run_in_executor(self.decoders, self.network.prepare, bytes_of(image))
                for image in images
            )
        )
        rows = await loop.run_in_executor(self.engine, self.network.infer, prepared)
        return [self.network.answer(row) for row in rows]


Classifier = Tuned if network.VARIANT == "tuned" else Tutorial
