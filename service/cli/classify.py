"""`resnet-serve classify`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from models.builtin import DEFAULT_SPEC
from models.extras import install
from service.cli import completers, progress
from service.cli.options import (
    INTERRUPTED,
    PATH,
    code_flag,
    engine_flags,
    exact_flag,
    fail_in_one_line,
    take,
)
from service.cli.outputs import overwrite_flag
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.cli.bulk.inputs import Encoded, Entry, Shard
    from service.cli.bulk.journal import Layout
    from service.cli.bulk.rows import Row

    Batches = Generator[list[Row], None, None]

TOP_K = 5
CONCURRENCY = 8
# For a request, including its retries: the service may be starting, or its queue full.
REQUEST_SECONDS, RETRIES = 60.0, 30
MOST_SHARDS = 100_000
FAILED = 1  # exit status
INDEPENDENT = "independent labels: each has a probability of its own, and they need not add up to 1"


class ShardOf(click.ParamType[tuple[int, int]]):
    """One of several shards, as in 3/8; converts to 2 and 8."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST_SHARDS:
            self.fail(f"{value!r} is not a shard such as 1/8 or 8/8", param, ctx)
        return int(match[1]) - 1, int(match[2])


@dataclass(frozen=True)
class Remote:
    url: str | None
    key_file: Path | None
    concurrency: int | None


@dataclass(frozen=True)
class Destination:
    output: Path | None
    rows_per_file: int | None
    shard: tuple[int, int] | None
    overwrite: bool
    on: str | None


@dataclass(frozen=True)
class Backend:
    """What classifies: `identity` is what the predictions depend on, `rows` gives the rows of
    each batch of entries; `on_cluster` writes the files itself and returns the number of rows, and
    of those with errors; `independent` says whether each label has a probability of its own."""

    identity: dict[str, Any]
    rows: Callable[[Iterator[Entry]], Batches]
    independent: Callable[[], bool]
    on_cluster: Callable[[tuple[Path, ...], Shard, Layout], tuple[int, int]] | None = None


@dataclass(frozen=True)
class BulkJob:
    images: tuple[Path, ...]
    shard: Shard
    quiet: bool

    def batches(self, backend: Backend, done: int = 0, last: str | None = None) -> Batches:
        """The rows of each batch after the first `done` images, with their progress."""
        from service.cli.bulk import inputs

        entries = inputs.remaining(self.images, self.shard, done, last)
        with (
            closing(backend.rows(entries)) as batches,
            progress.bar(hidden=self.quiet, unit=" images", initial=done, delay=1) as bar,
        ):

            def count() -> None:
                with suppress(ValueError, OSError):  # Reading the images reports it.
                    if total := inputs.count(self.images):
                        bar.total = len(range(self.shard.index, total, self.shard.count))

            if not isinstance(bar, progress.ProgressLines):
                # Classification starts in the meantime. Lines are not worth a second reading.
                Thread(target=count, daemon=True).start()
            for batch in batches:
                yield batch
                bar.update(len(batch))


@click.command()
@click.option(
    "--model",
    metavar="SPEC",
    shell_complete=completers.spec,
    help="Model to use; with --url, the name of a served model.  "
    f"[default: {DEFAULT_SPEC}, or the service's default]",
)
@click.option(
    "--top-k", type=click.IntRange(1), help=f"Number of predictions per image.  [default: {TOP_K}]"
)
@engine_flags
@code_flag
@exact_flag
@click.option(
    "--url",
    help="Use the service at this address, such as http://127.0.0.1:8000 or unix:/run/x.sock.",
)
@click.option(
    "--key-file",
    type=PATH,
    help="With --url: file whose first line is the API key.  [default: RESNET_SERVE_KEY, if set]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    help=f"With --url: number of concurrent requests.  [default: {CONCURRENCY}]",
)
@click.option(
    "--output",
    type=PATH,
    help="Write to a .jsonl, .csv or .parquet file, or to a folder of parquet files. To continue "
    "after an interruption, run the same command again.",
)
@click.option(
    "--rows-per-file",
    type=click.IntRange(1),
    help="Images per file, if --output is a folder.  [default: 100000]",
)
@click.option(
    "--shard",
    type=ShardOf(),
    help="Process only every N-th image, starting at the I-th, to split work over N machines.",
)
@overwrite_flag
@click.option("--on", type=click.Choice(["ray"]), help="Use all nodes of a Ray cluster.")
@click.option("--quiet", is_flag=True, help="Do not show progress.")
@click.argument("images", nargs=-1, required=True, type=PATH)
@fail_in_one_line
def classify(
    model: str | None, top_k: int | None, quiet: bool, images: tuple[Path, ...], **options: Any
) -> None:
    """Classifies images, locally or with the service at --url.

    IMAGES are images, folders, tar archives, parquet files with a column `image`, and .txt files
    with one path per line. The exit status is 1 if an image could not be classified; the others
    are nevertheless.
    """
    from service.cli.bulk import inputs
    from service.cli.bulk.journal import layout

    remote, output, flags = take(Remote, options), take(Destination, options), options
    _check(remote, output, flags)
    shard = inputs.Shard(*output.shard) if output.shard else inputs.WHOLE
    place = layout(output.output, output.rows_per_file, shard) if output.output else None
    if output.on and (remote.url or not place or not place.rows_per_file):
        raise ConfigError("--on ray: needs --output FOLDER, and no --url")
    inputs.check(images)
    job = BulkJob(images, shard, quiet)
    try:
        if remote.url:
            backend = _service(remote.url, remote, model, top_k)
        else:
            backend = _engine(model or DEFAULT_SPEC, top_k, flags)
        failed = _write(job, backend, place, output) if place else _print(job, backend)
    except KeyboardInterrupt:
        without = " without --overwrite" if output.overwrite else ""
        advice = f"; run the same command{without} to continue" if place else ""
        click.echo(f"resnet-serve: interrupted{advice}", err=True)
        raise SystemExit(INTERRUPTED) from None
    if failed:
        where = f"; {place.output} has the reasons" if place else ""
        what = "1 image" if failed == 1 else f"{failed} images"
        click.echo(f"resnet-serve: {what} could not be classified{where}", err=True)
        raise click.exceptions.Exit(FAILED)


def _check(remote: Remote, output: Destination, flags: dict[str, str | None]) -> None:
    """Refuses options that have no effect.

    Raises:
        ConfigError: there is one.
    """
    useless: dict[str, Any]
    useless = {"--key-file": remote.key_file, "--concurrency": remote.concurrency}
    if remote.url:
        useless = {f"--{name.replace('_', '-')}": value or None for name, value in flags.items()}
    for flag, value in useless.items():
        if value is not None:
            raise ConfigError(f"{flag}: only {'without' if remote.url else 'with'} --url")
    if not output.output and (output.rows_per_file or output.overwrite):
        flag = "--overwrite" if output.overwrite else "--rows-per-file"
        raise ConfigError(f"{flag}: only with --output")


def _engine(spec: str, top_k: int | None, flags: dict[str, Any]) -> Backend:
    """An engine in this process, or on a cluster.

    Raises:
        ConfigError: `top_k` is above the number of classes, the model has none, or the SPEC has no
            model.
    """
    from service.cli.bulk import ray_data, stream
    from service.repository import catalog, offline
    from service.runtime import cpus

    loaded = catalog.load(spec, allow=flags["allow_code"])
    classes = len(loaded.bundle.labels)
    if not classes:
        raise ConfigError(
            f"the model {loaded.bundle.name} has no classes; run `resnet-serve serve --model "
            f"{spec}` and use POST /v1/embed"
        )
    if top_k is not None and top_k > classes:
        raise ConfigError(f"--top-k must be from 1 to {classes}, not {top_k}")
    k = top_k or min(TOP_K, classes)
    exact = {"exact": flags.pop("exact")}
    named = {name: value for name, value in flags.items() if name != "allow_code"}

    def rows(entries: Iterator[Entry]) -> Batches:
        warm = offline.warm(loaded.bundle, **flags)
        yield from stream.classify(entries, loaded.bundle, warm, k, cpus(), **exact)

    return Backend(
        {"model": loaded.sha256 or spec, "top-k": k, **named, **exact},
        rows,
        lambda: loaded.bundle.outputs == "independent",
        partial(ray_data.classify, spec=spec, k=k, flags=flags, **exact),
    )


def _service(url: str, remote: Remote, model: str | None, top_k: int | None) -> Backend:
    """The service at `url`."""
    from service.config import loading

    try:
        from service.client import Client, ClientError, KeyRefused, RequestRefused
        from service.client.address import address_of
    except ModuleNotFoundError as error:
        raise ConfigError(f"--url needs {error.name}: {install('client')}") from None
    address = address_of(url)
    key = loading.client_key(remote.key_file)
    concurrency = remote.concurrency or CONCURRENCY
    client_of = partial(Client, url, key=key, timeout=REQUEST_SECONDS, retries=RETRIES)

    def independent() -> bool:
        try:
            with client_of() as client:
                called = model or dict(address.query).get("model")
                served = client.model(called) if called else client.models()[0]
        except RequestRefused:  # The requests with images say why.
            return False
        except ClientError as error:
            raise ConfigError(str(error)) from None
        return served.outputs == "independent"

    def rows(entries: Iterator[Entry]) -> Batches:
        requested: deque[Encoded] = deque()

        def images() -> Iterator[bytes | Path]:
            for entry in entries:
                requested.append(entry())
                yield requested[-1].data

        with client_of() as client:
            try:
                for item in client.classify_many(
                    images(), model=model, top_k=top_k, concurrency=concurrency
                ):
                    image, answer = requested.popleft(), item.classification
                    predictions = [asdict(row) for row in answer.predictions] if answer else []
                    error = image.error or str(item.error or "")
                    yield [{"file": image.name, "predictions": predictions, "error": error}]
            except KeyRefused as error:
                what = str(error).partition(";")[0]
                raise ConfigError(f"{what}; send one by --key-file or RESNET_SERVE_KEY") from None
            except ClientError as error:
                raise ConfigError(str(error)) from None

    # Without a password, which would be written beside the output.
    named = {"url": f"{address.shown}?{urlencode(address.query)}".rstrip("?")}
    return Backend({**named, "model": model, "top-k": top_k}, rows, independent)


def _write(job: BulkJob, backend: Backend, place: Layout, output: Destination) -> int:
    """Writes the rows that are not yet in the output; returns how many of these have errors."""
    from service.cli.bulk.inputs import printable
    from service.cli.bulk.journal import Journal

    identity = backend.identity | {
        "images": list(map(printable, job.images)),
        "shard": str(job.shard),
        "rows-per-file": place.rows_per_file,
        "on": output.on,
    }
    with closing(Journal(place, identity, output.overwrite)) as journal:
        if journal.complete:
            click.echo(f"{place.output}: already has all {journal.done} rows", err=True)
            return 0
        failed = 0
        if output.on and backend.on_cluster:
            journal.done, failed = backend.on_cluster(job.images, job.shard, place)
        else:
            with closing(job.batches(backend, journal.done, journal.last)) as batches:
                for batch in batches:
                    journal.write(batch)
                    failed += sum(bool(row["error"]) for row in batch)
        journal.finish()
    return failed


def _print(job: BulkJob, backend: Backend) -> int:
    """Prints a line for each image; probabilities that do not share 100 % are no percentages.
    Returns the number of errors."""
    form = ".1%"
    if backend.independent():
        form = ".3f"
        click.echo(INDEPENDENT, err=True)
    failed = 0
    with closing(job.batches(backend)) as batches:
        for row in chain.from_iterable(batches):
            failed += bool(row["error"])
            best = ", ".join(f"{p['label']} {p['probability']:{form}}" for p in row["predictions"])
            progress.write(f"{row['file']}: {row['error'] or best}")
    return failed
