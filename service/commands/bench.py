"""`resnet-serve bench`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click

from service.commands.options import fail_in_one_line


@click.command()
@click.option("--url", default="http://127.0.0.1:8000/v1/classify", show_default=True)
@click.option("--connections", type=click.IntRange(1), multiple=True, default=(1, 16, 64))
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@fail_in_one_line
def bench(
    url: str,
    connections: tuple[int, ...],
    seconds: float,
    output: Path | None,
    as_json: bool,
    images: tuple[Path, ...],
) -> None:
    """Throughput and latency of an HTTP classifier that takes raw images, with each number of
    connections in turn (closed loop)."""
    import asyncio

    from service.load import closed_loop

    bodies = [image.read_bytes() for image in images]
    if not as_json:
        click.echo("connections  images/s   p50 ms   p95 ms   p99 ms  answers")
    reports = []
    for count in connections:
        report = asyncio.run(closed_loop(url, bodies, connections=count, seconds=seconds))
        reports.append(asdict(report))
        if not as_json:
            ms = report.latency_ms
            click.echo(
                f"{count:>11}  {report.images_per_second:>8}  {ms['p50']:>7}  {ms['p95']:>7}  "
                f"{ms['p99']:>7}  {report.answers}"
            )
    document = {
        "url": url,
        "images": len(images),
        "machine": {"processor": _processor(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("resnet-serve", "torch", "uvicorn")},
        "runs": reports,
    }
    if output:
        output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if as_json:
        click.echo(json.dumps(document, indent=2))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
