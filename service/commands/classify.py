"""`resnet-serve classify`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from models.builtin import DEFAULT_SPEC
from service.commands import completing
from service.commands.options import engine_flags, fail_in_one_line
from service.errors import ConfigError

TOP_K = 5
# Of a request to a service, its retries included: it may be starting, or have a full queue.
SECONDS, RETRIES = 60.0, 30


@click.command()
@click.option(
    "--model",
    metavar="SPEC",
    shell_complete=completing.spec,
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
@click.option("--output", type=click.Path(path_type=Path), help="A .jsonl, .csv or .parquet file.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fail_in_one_line
def classify(
    model: str | None,
    top_k: int | None,
    url: str | None,
    key_file: Path | None,
    concurrency: int | None,
    output: Path | None,
    images: tuple[Path, ...],
    **flags: str | None,
) -> None:
    """Classifies images, or all images in folders, without a server or with the one at --url."""
    from service import rows

    remote = {"--key-file": key_file, "--concurrency": concurrency}
    misplaced = {f"--{name}": value for name, value in flags.items()} if url else remote
    for flag, value in misplaced.items():
        if value is not None:
            raise ConfigError(f"{flag}: only {'without' if url else 'with'} --url")
    write = rows.writer(output) if output else _print
    files = list(_files(images))
    found: Iterable[rows.Row]
    if url:
        found = _asked(url, key_file, files, model, top_k, concurrency or 8)
    else:
        from service import offline

        bundle, warm = offline.open_model(model or DEFAULT_SPEC, **flags)
        found = offline.classify(files, bundle, warm, top_k or TOP_K)
    quiet = len(files) < 2 or not sys.stderr.isatty()
    write(tqdm(found, total=len(files), unit=" images", disable=quiet))


def _asked(
    url: str,
    key_file: Path | None,
    files: list[Path],
    model: str | None,
    top_k: int | None,
    concurrency: int,
) -> Iterator[dict[str, Any]]:
    """The rows that a service's answers make, in order."""
    from service import settings

    try:
        from service.client import Client, ClientError
    except ModuleNotFoundError as error:
        raise ConfigError(f"--url needs {error.name}: pip install 'resnet-serve[client]'") from None
    key = settings.client_key(key_file)
    with Client(url, key=key, timeout=SECONDS, retries=RETRIES) as client:
        try:
            for item in client.classify_many(
                files, model=model, top_k=top_k, concurrency=concurrency
            ):
                answer = item.classification
                predictions = [asdict(each) for each in answer.predictions] if answer else []
                failed = str(item.error) if item.error else ""
                yield {"file": str(item.source), "predictions": predictions, "error": failed}
        except ClientError as error:
            raise ConfigError(str(error)) from None


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    from models.training.listing import SUFFIXES

    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")


def _print(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        if row["error"]:
            tqdm.write(f"{row['file']}: {row['error']}")
            continue
        best = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in row["predictions"])
        tqdm.write(f"{row['file']}: {best}")
