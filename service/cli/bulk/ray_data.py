"""Classification on all nodes of a Ray cluster with Ray Data.

Encoded images travel between nodes. All nodes must share the file system of inputs and output. Each
part is written under a temporary name and renamed, after the positions of its images: the next run
skips those. Because Ray may repeat a task, two parts may contain the same image: the later one is
deleted and the images that only it contained are processed again, until none remain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import files
from models.extras import install
from service.cli.bulk import inputs, rows, stream
from service.cli.bulk.inputs import Encoded, Shard
from service.cli.bulk.journal import Layout
from service.errors import ConfigError

# Encoded images per message between nodes.
BATCH = 64
PREFIX = "part-ray-"
# Fractions of a CPU, so that one CPU can run all the stages.
ENGINE_CPU, OTHER_CPU = 0.5, 0.25


def classify(
    images: Sequence[Path],
    shard: Shard,
    place: Layout,
    spec: str,
    k: int,
    flags: dict[str, str | None],
    exact: bool = False,
) -> tuple[int, int]:
    """Writes the missing parts; returns the total number of rows, and how many of the new ones have
    errors. `place` is a folder.

    Like Ray itself, it joins the cluster that `RAY_ADDRESS` names, else a cluster on this machine,
    else it starts one.

    Raises:
        ConfigError: Ray is not installed, or an archive is damaged.
    """
    ray = _ray()
    absolute = [path.absolute() for path in images]
    output = place.output.absolute()
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    resources = ray.cluster_resources()
    readers = max(1, int(resources.get("CPU", 1)) // 2)
    # A GPU for each engine, if there are any.
    gpus = int(resources.get("GPU", 0)) if flags["device"] != "cpu" else 0
    engines = {"num_gpus": 1} if gpus else {"num_cpus": ENGINE_CPU}
    done, failed = _done(place), 0
    while True:
        written = (
            ray.data.from_items([{"reader": index} for index in range(readers)])
            .map_batches(
                Reader,
                fn_constructor_args=(absolute, shard, readers, done),
                batch_size=1,
                concurrency=(1, readers),
                num_cpus=OTHER_CPU,
            )
            .map_batches(
                Classifier,
                # Workers may have another working directory.
                fn_constructor_args=(
                    str(Path(spec).absolute()) if Path(spec).exists() else spec,
                    k,
                    flags,
                    exact,
                ),
                batch_size=BATCH,
                concurrency=(1, gpus or max(1, readers)),
                **engines,
            )
            .map_batches(
                write,
                fn_args=(output, place.state.absolute()),
                batch_size=place.rows_per_file,
                num_cpus=OTHER_CPU,
            )
        )
        fresh = 0
        try:
            for part in written.iter_rows():
                fresh += int(part["rows"])
                failed += int(part["failed"])
        except ray.exceptions.RayTaskError as error:
            # An error in a user's file, without Ray's stack trace.
            if isinstance(error.cause, ConfigError | OSError):
                raise ConfigError(str(error.cause)) from None
            raise
        before, done = len(done), _done(place)
        if len(done) == before + fresh:
            return before + fresh, failed


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--on ray needs {error.name}: {install('ray')}") from None
    return ray


def _done(place: Layout) -> NDArray[np.int64]:
    """The positions of the images in complete parts, in ascending order."""
    seen = np.empty(0, np.int64)
    for part in sorted(place.parts()):
        positions = np.load(_positions(place.state, part.name))
        if np.isin(positions, seen).any():
            part.unlink()
        else:
            seen = np.union1d(seen, positions)
    return seen


def _positions(state: Path, part: str) -> Path:
    return state / f"{part}.npy"


class Reader:
    """One of `count` readers: batches of its images in a shard, except those already `done`."""

    def __init__(
        self, paths: Sequence[Path], shard: Shard, count: int, done: NDArray[np.int64]
    ) -> None:
        self._paths, self._shard, self._count, self._done = paths, shard, count, done

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> Iterator[dict[str, list[Any]]]:
        for reader in batch["reader"].tolist():
            step = self._shard.count * self._count
            own = Shard(self._shard.index + reader * self._shard.count, step)
            images_read: list[tuple[int, Encoded]] = []
            for number, entry in enumerate(inputs.remaining(self._paths, own)):
                position = own.index + number * step
                at = int(np.searchsorted(self._done, position))
                if at < len(self._done) and self._done[at] == position:
                    continue
                images_read.append((position, _read(entry())))
                if len(images_read) == BATCH:
                    yield _columns(images_read)
                    images_read = []
            if images_read:
                yield _columns(images_read)


def _read(image: Encoded) -> Encoded:
    """The image with its bytes, to spare the node that decodes it."""
    if isinstance(image.data, bytes):
        return image
    try:
        return image._replace(data=files.read(image.data))
    except OSError as error:
        return Encoded(image.name, b"", error.strerror or str(error))


def _columns(images: Sequence[tuple[int, Encoded]]) -> dict[str, list[Any]]:
    return {
        "position": [position for position, _ in images],
        "file": [image.name for _, image in images],
        "data": [image.data for _, image in images],
        "error": [image.error for _, image in images],
    }


class Classifier:
    """A Ray actor with a decoder and a warm engine."""

    def __init__(
        self, spec: str, k: int, flags: dict[str, str | None], exact: bool = False
    ) -> None:
        from service.repository import catalog, offline

        self._bundle = catalog.load(spec, allow=flags.get("allow_code")).bundle
        self._engine = offline.warm(self._bundle, **flags)
        self._k, self._exact = k, exact

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = zip(batch["file"], batch["data"], batch["error"], strict=True)
        entries = [partial(Encoded, str(name), data, str(error)) for name, data, error in columns]
        # One thread, since other actors use the other CPUs.
        batches = stream.classify(entries, self._bundle, self._engine, self._k, 1, self._exact)
        found = list(chain.from_iterable(batches))
        return {
            "position": batch["position"],
            "row": [rows.line(row) for row in found],
            "failed": [bool(row["error"]) for row in found],
        }


def write(batch: dict[str, Any], output: Path, state: Path) -> dict[str, list[int]]:
    """Writes the rows of a batch as a part."""
    positions = np.asarray(batch["position"], np.int64)
    order = np.argsort(positions)
    # A repeated task with the same rows writes the same part.
    digest = hashlib.sha256(positions[order].tobytes()).hexdigest()[:16]
    part = output / f"{PREFIX}{digest}.parquet"
    known = _positions(state, part.name)
    fresh = state / f"{part.name}.new"
    with known.open("wb") as file:
        np.save(file, positions[order])
    rows.write(fresh, ".parquet", (json.loads(batch["row"][index]) for index in order))
    files.move(fresh, part)
    return {"rows": [len(order)], "failed": [int(np.sum(batch["failed"]))]}
