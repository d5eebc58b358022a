"""From encoded images to rows: reading, decoding and computing run concurrently."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from queue import Empty, Queue
from threading import Event, Thread
from typing import NamedTuple, TypeVar

from models import files
from models.bundle import Bundle
from models.preprocess import InputSpec
from service.cli.bulk.inputs import Encoded, Entry
from service.cli.bulk.rows import Row
from service.config.settings import Settings
from service.engines.engine import Warm
from service.errors import RequestError
from service.inference import decoding
from service.inference.ranking import Ranking, top_k
from service.inference.tasks import Pixels
from service.runtime import SWITCH_SECONDS

T = TypeVar("T")
# Batches that are read, or computed, ahead of demand.
DEPTH = 2
# A batch of unusually large images ends at this size.
BATCH_BYTES = 32 * 2**20
MAX_PIXELS: int = Settings.model_fields["max_pixels"].default


class DecodedFile(NamedTuple):
    """An image's `pixels`, or the `error` if it has none."""

    name: str
    pixels: Pixels | None
    error: str


def classify(
    entries: Iterable[Entry],
    bundle: Bundle,
    engine: Warm,
    k: int,
    threads: int,
    exact: bool = False,
) -> Generator[list[Row], None, None]:
    """The rows of each batch, in order; `threads` threads decode, JPEGs in full if `exact`.

    Memory does not depend on the number of entries: at most DEPTH batches wait before and after
    the engine, and two per thread in between. An exception of `entries` is raised after the rows
    that precede it.
    """
    decoding.prepare()
    sys.setswitchinterval(SWITCH_SECONDS)
    size = engine.buckets.take(engine.buckets.largest)
    with (
        closing(_ahead(_loaded(entries, size), DEPTH)) as loaded,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
    ):
        decoded = _decoded(
            loaded, pool, partial(decode, spec=bundle.input, exact=exact), 2 * threads
        )
        with closing(_ahead(_ranked(decoded, engine), DEPTH)) as ranked:
            for images, ranking in ranked:
                yield _rows(images, ranking, bundle, k)


def _loaded(entries: Iterable[Entry], size: int) -> Iterator[list[Encoded]]:
    """Batches of `size` images, or of fewer if they are large."""
    batch: list[Encoded] = []
    size_in_bytes = 0
    try:
        for entry in entries:
            image = entry()
            batch.append(image)
            size_in_bytes += len(image.data) if isinstance(image.data, bytes) else 0
            if len(batch) == size or size_in_bytes > BATCH_BYTES:
                yield batch
                batch, size_in_bytes = [], 0
    except (ValueError, OSError):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _decoded(
    batches: Iterator[list[Encoded]],
    pool: ThreadPoolExecutor,
    decode_one: Callable[[Encoded], DecodedFile],
    limit: int,
) -> Iterator[list[DecodedFile]]:
    """Each batch with its pixels; at most `limit` are being decoded or waiting at a time."""
    pending: deque[Future[list[DecodedFile]]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(_decode_all, batch, decode_one))
            if len(pending) == limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except (ValueError, OSError):
        while pending:
            yield pending.popleft().result()
        raise
    finally:
        for future in pending:
            future.cancel()


def _decode_all(
    batch: list[Encoded], decode_one: Callable[[Encoded], DecodedFile]
) -> list[DecodedFile]:
    return [decode_one(image) for image in batch]


def decode(image: Encoded, spec: InputSpec, exact: bool = False) -> DecodedFile:
    """Reads the image, if it is a file, and decodes it."""
    if image.error:
        return DecodedFile(image.name, None, image.error)
    try:
        data = image.data if isinstance(image.data, bytes) else files.read(image.data)
        decoded = decoding.decode_image(data, spec, MAX_PIXELS, exact=exact)
        return DecodedFile(image.name, decoded.pixels, "")
    except OSError as error:
        return DecodedFile(image.name, None, error.strerror or str(error))
    except (RequestError, ValueError) as error:
        return DecodedFile(image.name, None, str(error))


def _ranked(
    batches: Iterable[list[DecodedFile]], engine: Warm
) -> Iterator[tuple[list[DecodedFile], Ranking | None]]:
    """Each batch with the ranking of those images that could be decoded."""
    in_flight: deque[tuple[list[DecodedFile], Callable[[], Ranking] | None]] = deque()

    def finished() -> tuple[list[DecodedFile], Ranking | None]:
        images, collect = in_flight.popleft()
        return images, collect() if collect else None

    try:
        for images in batches:
            pixels = [image.pixels for image in images if image.pixels is not None]
            in_flight.append((images, engine.launch(pixels) if pixels else None))
            if len(in_flight) == engine.engine.in_flight:
                yield finished()
    except (ValueError, OSError):
        while in_flight:
            yield finished()
        raise
    while in_flight:
        yield finished()


def _rows(images: list[DecodedFile], ranking: Ranking | None, bundle: Bundle, k: int) -> list[Row]:
    ranked = iter(ranking.rows() if ranking else ())
    return [
        {
            "file": image.name,
            "predictions": []
            if image.pixels is None
            else [
                {"class_id": p.class_id, "label": p.label, "probability": p.probability}
                for p in top_k(next(ranked), bundle.labels, k)
            ],
            "error": image.error,
        }
        for image in images
    ]


def _ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """`items`, iterated by another thread, at most `depth` ahead.

    That thread has ended once this generator is closed.
    """
    ready: Queue[tuple[T] | BaseException | None] = Queue(depth)
    closed = Event()

    def fetch() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                ready.put((item,))
                if closed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised in the consumer
            end = error
        ready.put(end)

    thread = Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        closed.set()
        while thread.is_alive():  # It may be waiting for space in the queue.
            try:
                ready.get(timeout=0.01)
            except Empty:
                continue
        thread.join()
