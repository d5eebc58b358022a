"""`resnet-serve classify`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from models.builtin import DEFAULT_SPEC
from service.commands.options import fail_in_one_line


@click.command()
@click.option("--model", "spec", default=DEFAULT_SPEC, show_default=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True)
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--engine", "kind", help="auto, eager, compile or openvino.")
@click.option("--precision", help="auto, fp32, bf16, fp16 or int8.")
@click.option("--output", type=click.Path(path_type=Path), help="A .jsonl, .csv or .parquet file.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fail_in_one_line
def classify(
    spec: str,
    top_k: int,
    device: str | None,
    kind: str | None,
    precision: str | None,
    output: Path | None,
    images: tuple[Path, ...],
) -> None:
    """Classifies images, or all images in folders, without a server."""
    from service import offline

    write = offline.writer(output) if output else _print
    files = list(_files(images))
    bundle, engine = offline.open_model(spec, device=device, engine=kind, precision=precision)
    found = offline.classify(files, bundle, engine, top_k)
    quiet = len(files) < 2 or not sys.stderr.isatty()
    write(tqdm(found, total=len(files), unit=" images", disable=quiet))


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    from models.training.datasets import SUFFIXES

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
