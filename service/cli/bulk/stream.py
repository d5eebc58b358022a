"""From encoded images to rows: reading, decoding and computing at once, each waiting for none."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import Empty, Queue
from threading import Event, Thread
from typing import NamedTuple, TypeVar

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
# Batches that are read, or computed, before they are asked for.
DEPTH = 2
# A batch of larger images than usual ends where it has so many bytes.
BATCH_BYTES = 32 * 2**20
MAX_PIXELS: int = Settings.model_fields["max_pixels"].default


class Decoded(NamedTuple):
    """An image's `pixels`, or why it has none."""

    name: str
    pixels: Pixels | None
    error: str


def classify(
    entries: Iterable[Entry], bundle: Bundle, engine: Warm, k: int, threads: int
) -> Generator[list[Row], None, None]:
    """The rows of each batch, in order; images are decoded by `threads` threads.

    Memory does not depend on how many entries there are: no more than DEPTH batches wait before
    and behind the engine, and two for each thread in between. Whatever `entries` raises is raised
    once the rows before it are given.
    """
    decoding.prepare()
    sys.setswitchinterval(SWITCH_SECONDS)
    size = engine.buckets.take(engine.buckets.largest)
    with (
        closing(_ahead(_loaded(entries, size), DEPTH)) as loaded,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
    ):
        decoded = _decoded(loaded, pool, bundle.input, 2 * threads)
        with closing(_ahead(_ranked(decoded, engine), DEPTH)) as ranked:
            for images, ranking in ranked:
                yield _rows(images, ranking, bundle, k)


def _loaded(entries: Iterable[Entry], size: int) -> Iterator[list[Encoded]]:
    """Batches of `size` images, or of fewer that are large."""
    batch: list[Encoded] = []
    held = 0
    try:
        for entry in entries:
            image = entry()
            batch.append(image)
            held += len(image.data) if isinstance(image.data, bytes) else 0
            if len(batch) == size or held > BATCH_BYTES:
                yield batch
                batch, held = [], 0
    except (ValueError, OSError):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _decoded(
    batches: Iterator[list[Encoded]], pool: ThreadPoolExecutor, spec: InputSpec, most: int
) -> Iterator[list[Decoded]]:
    """Every batch with its pixels, `most` of them being decoded or waiting at a time."""
    waiting: deque[Future[list[Decoded]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_decode_all, batch, spec))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except (ValueError, OSError):
        while waiting:
            yield waiting.popleft().result()
        raise
    finally:
        for each in waiting:
            each.cancel()


def _decode_all(batch: list[Encoded], spec: InputSpec) -> list[Decoded]:
    return [decode(image, spec) for image in batch]


def decode(image: Encoded, spec: InputSpec) -> Decoded:
    """The image read, if it is a file, and decoded."""
    if image.error:
        return Decoded(image.name, None, image.error)
    try:
        data = image.data if isinstance(image.data, bytes) else image.data.read_bytes()
        return Decoded(image.name, decoding.decode_image(data, spec, MAX_PIXELS).pixels, "")
    except OSError as error:
        return Decoded(image.name, None, error.strerror or str(error))
    except (RequestError, ValueError) as error:
        return Decoded(image.name, None, str(error))


def _ranked(
    batches: Iterable[list[Decoded]], engine: Warm
) -> Iterator[tuple[list[Decoded], Ranking | None]]:
    """Every batch with the ranking of what could be decoded of it."""
    flying: deque[tuple[list[Decoded], Callable[[], Ranking] | None]] = deque()

    def landed() -> tuple[list[Decoded], Ranking | None]:
        images, collect = flying.popleft()
        return images, collect() if collect else None

    try:
        for images in batches:
            pixels = [image.pixels for image in images if image.pixels is not None]
            flying.append((images, engine.launch(pixels) if pixels else None))
            if len(flying) == engine.engine.in_flight:
                yield landed()
    except (ValueError, OSError):
        while flying:
            yield landed()
        raise
    while flying:
        yield landed()


def _rows(images: list[Decoded], ranking: Ranking | None, bundle: Bundle, k: int) -> list[Row]:
    found = iter(ranking.rows() if ranking else ())
    return [
        {
            "file": image.name,
            "predictions": []
            if image.pixels is None
            else [
                {"class_id": each.class_id, "label": each.label, "probability": each.probability}
                for each in top_k(next(found), bundle.labels, k)
            ],
            "error": image.error,
        }
        for image in images
    ]


def _ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """`items`, gone through by a thread of their own, at most `depth` ahead.

    Once it is closed that thread has ended.
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
        except BaseException as error:  # noqa: BLE001 - is raised where the items are wanted
            end = error
        ready.put(end)

    thread = Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:
        closed.set()
        while thread.is_alive():  # It may wait for a place in the queue.
            try:
                ready.get(timeout=0.01)
            except Empty:
                continue
        thread.join()
