"""The client for programs without asyncio: `AsyncClient` in an event loop in another thread.

This limits the time of a call as a whole, including name resolution and slow responses; timeouts of
single socket operations would not.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import httpx

from service.client.asynchronous import AsyncClient
from service.client.images import ImageLike, in_folder
from service.client.responses import (
    Classification,
    Embedding,
    Explanation,
    Health,
    Item,
    ModelInfo,
)

T = TypeVar("T")
Loop = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class Client:
    """A client for the service at `url`; arguments, results and errors are those of `AsyncClient`.

    Threads may share a client. A forked process needs its own.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 30.0,
        retries: int = 5,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            url,
            model=model,
            key=key,
            timeout=timeout,
            retries=retries,
            verify=verify,
            transport=transport,
        )
        self.url = self._client.url
        started: Future[Loop] = Future()
        self._thread = threading.Thread(
            target=lambda client: asyncio.run(_live(client, started)),
            args=(self._client,),
            name="resnet-serve client",
            daemon=True,
        )
        self._thread.start()
        self._loop, stop = started.result()
        # Ends the thread even if the client is not closed.
        self._stop = weakref.finalize(self, _end, self._loop, stop)
        self._process = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread; cancels calls that run in other threads."""
        if self._stop.alive and self._process == os.getpid():
            self._stop()
            self._thread.join()

    def classify(
        self, image: ImageLike, *, model: str | None = None, top_k: int | None = None
    ) -> Classification:
        """See `AsyncClient.classify`."""
        return self._run(self._client.classify(image, model=model, top_k=top_k))

    def embed(
        self, image: ImageLike, *, model: str | None = None, normalize: bool = False
    ) -> Embedding:
        """See `AsyncClient.embed`."""
        return self._run(self._client.embed(image, model=model, normalize=normalize))

    def explain(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> Explanation:
        """See `AsyncClient.explain`."""
        return self._run(self._client.explain(image, model=model, class_id=class_id))

    def explain_png(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> bytes:
        """See `AsyncClient.explain_png`."""
        return self._run(self._client.explain_png(image, model=model, class_id=class_id))

    def classify_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        concurrency: int = 8,
    ) -> Iterator[Item]:
        """See `AsyncClient.classify_many`; `images` is iterated in the calling thread."""
        if concurrency < 1:
            raise ValueError(f"concurrency: must be 1 or more, not {concurrency!r}")
        items: deque[Future[Item]] = deque()
        try:
            for source in images:
                items.append(self._begin(self._client.item(source, model=model, top_k=top_k)))
                if len(items) == concurrency:
                    yield items[0].result()
                    items.popleft()
            while items:
                yield items[0].result()
                items.popleft()
        finally:
            for item in items:
                item.cancel()

    def classify_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        top_k: int | None = None,
        concurrency: int = 8,
    ) -> Iterator[Item]:
        """See `AsyncClient.classify_folder`."""
        files = in_folder(folder)
        return self.classify_many(files, model=model, top_k=top_k, concurrency=concurrency)

    def models(self) -> tuple[ModelInfo, ...]:
        """See `AsyncClient.models`."""
        return self._run(self._client.models())

    def model(self, name: str) -> ModelInfo:
        """See `AsyncClient.model`."""
        return self._run(self._client.model(name))

    def ready(self) -> Health:
        """See `AsyncClient.ready`."""
        return self._run(self._client.ready())

    def live(self) -> Health:
        """See `AsyncClient.live`."""
        return self._run(self._client.live())

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        future = self._begin(call)
        try:
            return future.result()
        finally:
            future.cancel()  # An interrupt may have ended the wait.

    def _begin(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if self._process != os.getpid() or not self._stop.alive:
            call.close()
            raise RuntimeError(
                "the client is closed"
                if self._process == os.getpid()
                else "the client was created before this process was forked; create one here"
            )
        return asyncio.run_coroutine_threadsafe(call, self._loop)


async def _live(client: AsyncClient, started: Future[Loop]) -> None:
    """Keeps the event loop running until it is told to stop."""
    stop = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stop))
    async with client:
        await stop.wait()


def _end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.call_soon_threadsafe(stop.set)
