"""The client for asyncio, on which the blocking client is built."""

from __future__ import annotations

import asyncio
import os
import ssl
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal, Self, TypeVar
from urllib.parse import quote

import httpx

from service.client.address import address_of
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
from service.client.transport import proxy_of, reason_of, shown, tls_problem, transport_to

T = TypeVar("T")
Parameters = Mapping[str, str | int | bool | None]
# Errors that concern a single image; any other error would recur for the next one.
PER_IMAGE = (ImageRefused, UnreadableImage, Busy, DeadlinePassed, TimedOut)
CONNECT_SECONDS = 5.0
MAX_RESPONSE = 64 * 2**20  # bytes, uncompressed
MAX_TIMEOUT_MS = 3_600_000  # The service's limit.


@dataclass(frozen=True, slots=True)
class Raw:
    status: int
    headers: httpx.Headers
    body: bytes


class AsyncClient:
    """A client for the service at `url`, such as http://127.0.0.1:8000 or unix:/run/x.sock. Use one
    object for all calls, so that they share connections, in one event loop, preferably with
    `async with`.

    A proxy in the environment (HTTP_PROXY, NO_PROXY) is for other hosts: this one, under the name
    localhost or an address, is reached directly. A query in `url` belongs to every prediction.

    `model` is the default model of calls; without it, the service's default. `key` is the API key
    to send. `timeout`: seconds for a whole call, including retries and the waits between them; the
    service learns how much of it remains. `retries`: how often to repeat a call if the service is
    busy or unreachable. `verify`: as for httpx, for custom certificates.

    Raises:
        ValueError: an argument is invalid.
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
            raise ValueError(f"timeout: must be above 0 seconds, not {timeout!r}")
        if retries < 0:
            raise ValueError(f"retries: must be 0 or more, not {retries!r}")
        address = address_of(url)
        self.url = address.shown
        self._query = dict(address.query)
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._proxy = None if transport else proxy_of(address)
        self._http = httpx.AsyncClient(
            base_url=address.base,
            headers=_authorization(key, address.authorization),
            transport=transport or transport_to(address, self._proxy, verify),
            # A call as a whole has a time limit.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def classify(
        self, image: ImageLike, *, model: str | None = None, top_k: int | None = None
    ) -> Classification:
        """The `top_k` most probable classes of an image, 5 by default.

        `image`: a path, the bytes of a file, a binary file, a PIL image, or an array uint8: grey
        [H, W], RGB [H, W, 3] or RGBA [H, W, 4], whatever channels the model has.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        parameters = {"model": model, "top_k": top_k}
        return read(Classification, await self._post("/v1/classify", image, parameters))

    async def embed(
        self, image: ImageLike, *, model: str | None = None, normalize: bool = False
    ) -> Embedding:
        """The features of an image before the head; `normalize` scales them to length 1.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        parameters = {"model": model, "normalize": normalize}
        return read(Embedding, await self._post("/v1/embed", image, parameters))

    async def explain(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> Explanation:
        """Which parts of an image are evidence for a class, by default the most probable one.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        parameters = {"model": model, "class_id": class_id}
        return read(Explanation, await self._post("/v1/explain", image, parameters))

    async def explain_png(
        self, image: ImageLike, *, model: str | None = None, class_id: int | None = None
    ) -> bytes:
        """A PNG that overlays the map of `explain` on the network's view of the image.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        parameters = {"model": model, "class_id": class_id, "format": "png"}
        return await self._post("/v1/explain", image, parameters)

    async def classify_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        concurrency: int = 8,
    ) -> AsyncGenerator[Item, None]:
        """An item for each image, in order, as soon as it is available. Sends `concurrency`
        requests at a time, and takes no more than that from `images` in advance.

        An error that concerns a single image is the `error` of its item. To stop early, use
        `async with contextlib.aclosing(client.classify_many(images)) as items`.

        Raises:
            ClientError: no image can be classified, as the service is unreachable or the key wrong.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency: must be 1 or more, not {concurrency!r}")
        tasks: deque[asyncio.Task[Item]] = deque()
        try:
            async for source in _iterate(images):
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
        """Like `classify_many`, for the images in a folder and its subfolders, sorted by name.

        Raises:
            UnreadableImage: the folder does not exist.
        """
        files = in_folder(folder)
        return self.classify_many(files, model=model, top_k=top_k, concurrency=concurrency)

    async def item(
        self, source: ImageLike, *, model: str | None = None, top_k: int | None = None
    ) -> Item:
        """One item of `classify_many`."""
        try:
            return Item(source, await self.classify(source, model=model, top_k=top_k))
        except PER_IMAGE as error:
            return Item(source, error=error)

    async def models(self) -> tuple[ModelInfo, ...]:
        """The served models, the default model first.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        return read(Models, await self._request("GET", "/v1/models")).models

    async def model(self, name: str) -> ModelInfo:
        """One model, with its card.

        Raises:
            ClientError: see `service.client.exceptions`.
        """
        return read(ModelInfo, await self._request("GET", f"/v1/models/{quote(name, safe='')}"))

    async def ready(self) -> Health:
        """Whether every model can serve now; makes one attempt and does not raise."""
        return await self._health("ready")

    async def live(self) -> Health:
        """Whether the service is up or can recover by itself; otherwise like `ready`."""
        return await self._health("live")

    async def _health(self, which: Literal["ready", "live"]) -> Health:
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._send("GET", f"/health/{which}", {}, b"", {})
        except TimeoutError:
            return Health(False, "no response", {"": f"none within {self._timeout:g} s"})
        except ClientError as error:
            return Health(False, "unreachable", {"": str(error)})
        try:
            report = read(HealthReport, response.body)
        except UnreadableAnswer as error:
            return Health(False, f"status {response.status}", {"": str(error)})
        return Health(response.status == httpx.codes.OK, report.status, report.reasons)

    async def _post(self, path: str, image: ImageLike, parameters: Parameters) -> bytes:
        model = parameters["model"] or self._model
        named = {name: value for name, value in parameters.items() if value is not None}
        query: dict[str, str | int | bool | None] = {**self._query, **named}
        if model is not None:
            query["model"] = model
        content = image if isinstance(image, bytes) else await asyncio.to_thread(encoded, image)
        return await self._request("POST", path, query, content)

    async def _request(
        self, method: str, path: str, parameters: Parameters | None = None, content: bytes = b""
    ) -> bytes:
        """The body of a response 200, with retries as long as time remains."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._timeout
        headers = {"X-Request-ID": uuid.uuid4().hex}
        last: ClientError | None = None
        try:
            async with asyncio.timeout_at(until):
                for attempt in count():
                    left_ms = min(1000 * (until - clock()), MAX_TIMEOUT_MS)
                    headers["X-Request-Timeout-Ms"] = f"{max(1, left_ms):.0f}"
                    try:
                        return await self._once(method, path, parameters or {}, content, headers)
                    except Lasting:
                        raise
                    except (Unreachable, RequestRefused) as error:
                        last = error
                    delay = None
                    if isinstance(last, RequestRefused):
                        delay = last.retry_after
                        if last.status not in AGAIN:
                            raise last
                    # The service may have closed an idle connection while we used it. A prediction
                    # changes nothing, so that it can be sent again at once, on a new one.
                    first_break = attempt == 0 and isinstance(last, Broken)
                    wait = 0.0 if first_break else pause(attempt, delay)
                    # Without time for another attempt, fail immediately.
                    if attempt == self._retries or clock() + wait >= until:
                        raise last
                    await asyncio.sleep(wait)
        except TimeoutError:
            why = f"; before that: {last}" if last else ""
            raise TimedOut(f"no response within {self._timeout:g} s{why}") from None
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        path: str,
        parameters: Parameters,
        content: bytes,
        headers: dict[str, str],
    ) -> bytes:
        response = await self._send(method, path, parameters, content, headers)
        if response.status == httpx.codes.OK:
            return response.body
        wait = retry_after(response.headers)
        raise refusal(response.status, response.body, response.headers, wait)

    async def _send(
        self,
        method: str,
        path: str,
        parameters: Parameters,
        content: bytes,
        headers: dict[str, str],
    ) -> Raw:
        try:
            async with self._http.stream(
                method, path, params=parameters, content=content, headers=headers
            ) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_RESPONSE:
                        raise UnreadableAnswer(f"the response has more than {MAX_RESPONSE} bytes")
                return Raw(response.status_code, response.headers, bytes(body))
        except httpx.DecodingError as error:
            raise UnreadableAnswer(f"the response cannot be decompressed: {error}") from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        connecting = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
        lasting = tls_problem(error) if connecting else ""
        kind = Lasting if lasting else Unreachable if connecting else Broken
        why = lasting or reason_of(error)
        if self._proxy is None or not connecting:
            return kind(f"{self.url}: {'cannot connect: ' if connecting else ''}{why}")
        host = self._http.base_url.host
        return kind(
            f"{self.url}: cannot connect through the proxy {shown(self._proxy)}: {why}; "
            f"set NO_PROXY={host} to reach it directly"
        )


class Broken(Unreachable):
    """The connection was closed before the whole response."""


class Lasting(Unreachable):
    """The next attempt will fail alike."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The JSON of /health."""

    status: str
    reasons: dict[str, str]


def _authorization(key: str | None, of_url: str) -> dict[str, str]:
    if key is None:
        return {"Authorization": of_url} if of_url else {}
    if of_url:
        raise ValueError("url: has a password, which a key excludes: both are sent in one header")
    # httpx would fail later, and show the key.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("key: must be printable ASCII characters without spaces")
    return {"Authorization": f"Bearer {key}"}


async def _iterate(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
