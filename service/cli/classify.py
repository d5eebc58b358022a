"""`resnet-serve classify`."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from models.builtin import DEFAULT_SPEC
from service.cli import completers
from service.cli.options import engine_flags, fail_in_one_line
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.cli.bulk.inputs import Encoded, Entry, Shard
    from service.cli.bulk.rows import Row

    Batches = Generator[list[Row], None, None]
    Answers = Callable[[Iterator[Entry]], Batches]

TOP_K = 5
# Of a request to a service, its retries included: it may be starting, or have a full queue.
SECONDS, RETRIES = 60.0, 30
# What a shell makes of a program that Ctrl-C ended.
INTERRUPTED = 130
MOST_SHARDS = 100_000


class ShardOf(click.ParamType[tuple[int, int]]):
    """Which of how many, as in 3/8; gives 2 and 8."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= MOST_SHARDS:
            self.fail(f"{value!r} is not one of several, as 1/8 to 8/8 are", param, ctx)
        return int(found[1]) - 1, int(found[2])


@click.command()
@click.option(
    "--model",
    metavar="SPEC",
    shell_complete=completers.spec,
    help=f"With --url the name of a served model.  [default: {DEFAULT_SPEC}, or the served one]",
)
@click.option("--top-k", type=click.IntRange(1), help=f"[default: {TOP_K}]")
@engine_flags
@click.option("--url", help="Ask the service there, such as http://127.0.0.1:8000.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="With --url: its first line is the key to send; else RESNET_SERVE_KEY is, if set.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    help="With --url: images asked for at a time.  [default: 8]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="A .jsonl, .csv or .parquet file, or a folder for parts in parquet. The same command "
    "goes on after a kill.",
)
@click.option(
    "--rows-per-file",
    type=click.IntRange(1),
    help="Images of each part, where --output is a folder.  [default: 100000]",
)
@click.option(
    "--shard",
    type=ShardOf(),
    help="Only every N-th image, from the I-th on; N machines share the work.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew where --output has another run.")
@click.option("--on", type=click.Choice(["ray"]), help="Work on all nodes of a Ray cluster.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fail_in_one_line
def classify(
    model: str | None,
    top_k: int | None,
    url: str | None,
    key_file: Path | None,
    concurrency: int | None,
    output: Path | None,
    rows_per_file: int | None,
    shard: tuple[int, int] | None,
    overwrite: bool,
    on: str | None,
    quiet: bool,
    images: tuple[Path, ...],
    **flags: str | None,
) -> None:
    """Classifies images, without a server or with the one at --url.

    IMAGES are images, folders, tar archives, parquet files with a column `image`, and .txt files
    that list paths, one a line.
    """
    from service.cli.bulk import inputs
    from service.cli.bulk.journal import Journal, layout

    remote = {"--key-file": key_file, "--concurrency": concurrency}
    misplaced = {f"--{name}": value for name, value in flags.items()} if url else remote
    for flag, value in misplaced.items():
        if value is not None:
            raise ConfigError(f"{flag}: only {'without' if url else 'with'} --url")
    if not output and (rows_per_file or overwrite):
        raise ConfigError(
            f"{'--overwrite' if overwrite else '--rows-per-file'}: only with --output"
        )
    part = inputs.Shard(*shard) if shard else inputs.WHOLE
    place = layout(output, rows_per_file, part) if output else None
    if on and (url or not place or not place.rows_per_file):
        raise ConfigError("--on ray: needs --output FOLDER, and no --url")
    inputs.check(images)
    try:
        if url:
            identity, answers = _served(url, key_file, model, top_k, concurrency or 8)
        else:
            identity, answers = _local(model or DEFAULT_SPEC, top_k or TOP_K, flags)
        if not place:
            with closing(answers(inputs.remaining(images, part))) as batches:
                for batch in _counted(batches, images, part, 0, quiet):
                    _print(batch)
            return
        files = list(map(inputs.printable, images))
        identity |= {"images": files, "shard": str(part), "rows-per-file": place.rows_per_file}
        identity |= {"on": on}
        with closing(Journal(place, identity, overwrite)) as journal:
            if journal.complete:
                click.echo(f"{output}: has all {journal.done} rows already", err=True)
                return
            if on:
                from service.cli.bulk import ray_data

                spec = model or DEFAULT_SPEC
                journal.done = ray_data.classify(images, part, place, spec, top_k or TOP_K, flags)
                journal.finish()
                return
            entries = inputs.remaining(images, part, journal.done, journal.last)
            with closing(answers(entries)) as batches:
                for batch in _counted(batches, images, part, journal.done, quiet):
                    journal.write(batch)
            journal.finish()
    except KeyboardInterrupt:
        kept = "; the same command goes on from here" if output else ""
        click.echo(f"resnet-serve: stopped{kept}", err=True)
        raise SystemExit(INTERRUPTED) from None


def _local(spec: str, k: int, flags: dict[str, str | None]) -> tuple[dict[str, Any], Answers]:
    """What the answers depend on, and what gives them: an engine of our own."""
    from service.cli.bulk import stream
    from service.repository import catalog, offline
    from service.runtime import cpus

    loaded = catalog.load(spec)

    def answers(entries: Iterator[Entry]) -> Batches:
        warm = offline.warm(loaded.bundle, **flags)
        yield from stream.classify(entries, loaded.bundle, warm, k, cpus())

    return {"model": loaded.sha256 or spec, "top-k": k, **flags}, answers


def _served(
    url: str, key_file: Path | None, model: str | None, top_k: int | None, concurrency: int
) -> tuple[dict[str, Any], Answers]:
    """As `_local`, by the service at `url`."""
    from service.config import loading

    try:
        from service.client import Client, ClientError
    except ModuleNotFoundError as error:
        raise ConfigError(f"--url needs {error.name}: pip install 'resnet-serve[client]'") from None
    key = loading.client_key(key_file)

    def answers(entries: Iterator[Entry]) -> Batches:
        asked: deque[Encoded] = deque()

        def images() -> Iterator[bytes | Path]:
            for entry in entries:
                asked.append(entry())
                yield asked[-1].data

        with Client(url, key=key, timeout=SECONDS, retries=RETRIES) as client:
            try:
                for item in client.classify_many(
                    images(), model=model, top_k=top_k, concurrency=concurrency
                ):
                    image, answer = asked.popleft(), item.classification
                    predictions = [asdict(each) for each in answer.predictions] if answer else []
                    error = image.error or str(item.error or "")
                    yield [{"file": image.name, "predictions": predictions, "error": error}]
            except ClientError as error:
                raise ConfigError(str(error)) from None

    return {"url": url, "model": model, "top-k": top_k}, answers


def _counted(
    batches: Batches, images: tuple[Path, ...], part: Shard, done: int, quiet: bool
) -> Iterator[list[Row]]:
    """`batches`, with a bar of those that were taken."""
    quiet = quiet or not sys.stderr.isatty()
    with tqdm(unit=" images", initial=done, delay=1, disable=quiet) as bar:

        def count() -> None:
            from service.cli.bulk import inputs

            with suppress(ValueError, OSError):  # Whoever reads it all will say it.
                if total := inputs.count(images):
                    bar.total = len(range(part.index, total, part.count))

        if not quiet:
            # Meanwhile the first are classified.
            Thread(target=count, daemon=True).start()
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _print(rows: list[Row]) -> None:
    for row in rows:
        if row["error"]:
            tqdm.write(f"{row['file']}: {row['error']}")
            continue
        best = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in row["predictions"])
        tqdm.write(f"{row['file']}: {best}")
