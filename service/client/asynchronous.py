"""The client for asyncio, and all that the other one is made of."""

from __future__ import annotations

import asyncio
import os
import ssl
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import quote

import httpx

from service.client.exceptions import (
    Busy,
    ClientError,
    DeadlinePassed,
    ImageRefused,
    RequestRefused,
    TimedOut,
    Unreachable,
    UnreadableAnswer,
    UnreadableImage,
    refusal,
)
from service.client.images import ImageLike, encoded, in_folder
from service.client.responses import (
    Classification,
    Embedding,
    Explanation,
    Health,
    Item,
    ModelInfo,
    Models,
    read,
)
from service.client.retry import AGAIN, pause, retry_after

T = TypeVar("T")
Parameters = Mapping[str, str | int | bool | None]
# Of one image alone: many go on without it. Anything else would befall the next one too.
ALONE = (ImageRefused, UnreadableImage, Busy, DeadlinePassed, TimedOut)
CONNECT_SECONDS = 5.0
KEPT_CONNECTIONS = 64
LARGEST = 64 * 2**20  # bytes of an answer, unpacked
MOST_TIMEOUT_MS = 3_600_000  # What the service takes.


@dataclass(frozen=True, slots=True)
class Raw:
    status: int
    headers: httpx.Headers
    body: bytes


class AsyncClient:
    """Asks the service at `url`, such as http://127.0.0.1:8000; one object for all calls, so that
    they share connections. Use it in one event loop, best with `async with`.

    `model` answers where a call names none; by default the service's first. `key` is sent where
    the service asks for one. `timeout`: seconds for a call in all, with its retries and the waits
    between them; the service is told what is left of it. `retries`: how often a call is sent again
    when the service is busy or out of reach. `verify`: as for httpx, for certificates of one's own.

    Raises:
        ValueError: an argument is impossible.
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
        if not timeout > 0:
            raise ValueError(f"timeout: should be above 0 seconds, not {timeout!r}")
        if retries < 0:
            raise ValueError(f"retries: should be 0 or more, not {retries!r}")
        self.url = _address(url)
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=_authorization(key),
            verify=verify,
            transport=transport,
            # What a call may take in all is bounded as a whole.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_keepalive_connections=KEPT_CONNECTIONS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def classify(
        self, image: ImageLike, *, model: str | None = None, top_k: int | None = None
    ) -> Classification:
        """The `top_k` likeliest classes of an image, 5 unless told.

        `image`: a path, the bytes of a file, a binary file, a PIL image, or uint8 [H, W, 3].

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        asked = {"model": model, "top_k": top_k}
        return read(Classification, await self._ask("/v1/classify", image, asked))

    async def embed(
        self, image: ImageLike, *, model: str | None = None, normalize: bool = False
    ) -> Embedding:
        """The features of an image that the network's head sees; `normalize`: of length 1.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        asked = {"model": model, "normalize": normalize}
        return read(Embedding, await self._ask("/v1/embed", image, asked))

    async def explain(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> Explanation:
        """Which parts of an image speak for a class, by default the likeliest.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        asked = {"model": model, "class_id": class_id}
        return read(Explanation, await self._ask("/v1/explain", image, asked))

    async def explain_png(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> bytes:
        """A PNG of `explain`'s map over what the network saw of the image.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        asked = {"model": model, "class_id": class_id, "format": "png"}
        return await self._ask("/v1/explain", image, asked)

    async def classify_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        concurrency: int = 8,
    ) -> AsyncGenerator[Item, None]:
        """An item for each image, in order, as soon as it is there; `concurrency` of them are
        asked for at a time, and no more are taken from `images` ahead.

        What is wrong with one image, or befalls it, is its item's error. Whoever stops early closes
        it: `async with contextlib.aclosing(client.classify_many(images)) as items`.

        Raises:
            ClientError: no image can be classified: the service is out of reach, the key wrong.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency: should be 1 or more, not {concurrency!r}")
        tasks: deque[asyncio.Task[Item]] = deque()
        try:
            async for source in _each(images):
                tasks.append(asyncio.create_task(self.item(source, model=model, top_k=top_k)))
                if len(tasks) == concurrency:
                    yield await tasks.popleft()
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def classify_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        top_k: int | None = None,
        concurrency: int = 8,
    ) -> AsyncGenerator[Item, None]:
        """As `classify_many`, for the images in a folder and below it, by name.

        Raises:
            UnreadableImage: there is no such folder.
        """
        files = in_folder(folder)
        return self.classify_many(files, model=model, top_k=top_k, concurrency=concurrency)

    async def item(
        self, source: ImageLike, *, model: str | None = None, top_k: int | None = None
    ) -> Item:
        """One of `classify_many`."""
        try:
            return Item(source, await self.classify(source, model=model, top_k=top_k))
        except ALONE as error:
            return Item(source, error=error)

    async def models(self) -> tuple[ModelInfo, ...]:
        """What is served, the default model first.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        return read(Models, await self._answer("GET", "/v1/models")).models

    async def model(self, name: str) -> ModelInfo:
        """One model, with its card.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        return read(ModelInfo, await self._answer("GET", f"/v1/models/{quote(name, safe='')}"))

    async def ready(self) -> Health:
        """Whether every model can answer now; asked once, and nothing is raised."""
        return await self._health("ready")

    async def live(self) -> Health:
        """Whether the service is there and can recover by itself; as `ready`."""
        return await self._health("live")

    async def _health(self, which: Literal["ready", "live"]) -> Health:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._send("GET", f"/health/{which}", {}, b"", {})
        except TimeoutError:
            return Health(False, "no answer", {"": f"none within {self._timeout:g} s"})
        except ClientError as error:
            return Health(False, "unreachable", {"": str(error)})
        try:
            told = read(Told, answer.body)
        except UnreadableAnswer as error:
            return Health(False, f"answered {answer.status}", {"": str(error)})
        return Health(answer.status == httpx.codes.OK, told.status, told.reasons)

    async def _ask(self, path: str, image: ImageLike, asked: Parameters) -> bytes:
        model = asked["model"] or self._model
        given = {name: value for name, value in asked.items() if value is not None}
        if model is not None:
            given["model"] = model
        content = image if isinstance(image, bytes) else await asyncio.to_thread(encoded, image)
        return await self._answer("POST", path, given, content)

    async def _answer(
        self, method: str, path: str, asked: Parameters | None = None, content: bytes = b""
    ) -> bytes:
        """The body of the answer 200, retried until there is one or no time is left."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._timeout
        headers = {"X-Request-ID": uuid.uuid4().hex}
        last: ClientError | None = None
        try:
            async with asyncio.timeout_at(until):
                for attempt in count():
                    left_ms = min(1000 * (until - clock()), MOST_TIMEOUT_MS)
                    headers["X-Request-Timeout-Ms"] = f"{max(1, left_ms):.0f}"
                    try:
                        return await self._once(method, path, asked or {}, content, headers)
                    except (Unreachable, RequestRefused) as error:
                        last = error
                    told = None
                    if isinstance(last, RequestRefused):
                        told = last.retry_after
                        if last.status not in AGAIN:
                            raise last
                    wait = pause(attempt, told)
                    # Whoever would not get an answer any more is told at once.
                    if attempt == self._retries or clock() + wait >= until:
                        raise last
                    await asyncio.sleep(wait)
        except TimeoutError:
            why = f"; before that: {last}" if last else ""
            raise TimedOut(f"no answer within {self._timeout:g} s{why}") from None
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, asked: Parameters, content: bytes, headers: dict[str, str]
    ) -> bytes:
        answer = await self._send(method, path, asked, content, headers)
        if answer.status == httpx.codes.OK:
            return answer.body
        wait = retry_after(answer.headers)
        raise refusal(answer.status, answer.body, answer.headers, wait)

    async def _send(
        self, method: str, path: str, asked: Parameters, content: bytes, headers: dict[str, str]
    ) -> Raw:
        try:
            async with self._http.stream(
                method, path, params=asked, content=content, headers=headers
            ) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > LARGEST:
                        raise UnreadableAnswer(f"the answer has more than {LARGEST} bytes")
                return Raw(response.status_code, response.headers, bytes(body))
        except httpx.DecodingError as error:
            raise UnreadableAnswer(f"the answer cannot be unpacked: {error}") from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"{self.url}: {why}") from None


@dataclass(frozen=True, slots=True)
class Told:
    """What /health answers."""

    status: str
    reasons: dict[str, str]


def _address(url: str) -> str:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(f"url: should be such as http://127.0.0.1:8000, not {url!r}")
    return str(address)


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    # Said here without showing it; httpx would, and later.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("key: should be printable ASCII characters without spaces")
    return {"Authorization": f"Bearer {key}"}


async def _each(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
