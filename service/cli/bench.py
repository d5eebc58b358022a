"""`resnet-serve bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.extras import install
from models.files import read
from service.cli import outputs
from service.cli.options import FILE, PATH, fail_in_one_line
from service.cli.progress import bar
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.cli.load.report import Report

CONNECTIONS = (1, 16, 64)  # of a closed loop
MOST_CONNECTIONS = 256  # of an open loop
PICTURES = (".png", ".svg")
OK = 200


@click.command()
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    help="Address of the service, as for `classify`, or the URL of another HTTP classifier.",
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    multiple=True,
    help="Closed loop: each connection sends its next request when the previous response arrives; "
    f"repeat for several runs. Default: {', '.join(map(str, CONNECTIONS))}. With --rate: the most "
    f"connections to open. Default: {MOST_CONNECTIONS}.",
)
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    help="Open loop: send at this rate per second whether or not earlier responses have arrived; "
    "repeat for several runs. Latency counts from when a request was due.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "fixed"]),
    default="poisson",
    help="Timing of an open loop's requests: independent of each other, or evenly spaced.",
)
@click.option("--seed", type=int, default=0, help="Seed of the arrivals.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    help="Length of a run, without its warm-up.",
)
@click.option(
    "--warm-up-s",
    "warm_up",
    type=click.FloatRange(0),
    default=1.0,
    help="Seconds of load before measuring starts.",
)
@click.option(
    "--timeout-s",
    "timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    help="Give up on a request after this many seconds.",
)
@click.option(
    "--slo-ms",
    type=click.FloatRange(0, min_open=True),
    help="Report goodput: responses per second within this latency.",
)
@click.option(
    "--patience-ms",
    type=click.FloatRange(0, min_open=True),
    help="Open loop: drop a request that finds no free connection for so long, as its client would "
    "have left. Default: send it late.",
)
@click.option(
    "--new-connections",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of the requests that open a connection of their own. Default: 0.",
)
@click.option("--form", metavar="FIELD", help="Send a form with the image in this field.")
@click.option(
    "--content-type", default="application/octet-stream", help="Content type of the images."
)
@click.option(
    "--header",
    "headers",
    metavar="'K: V'",
    multiple=True,
    help="Header to send; repeat for several.",
)
@click.option(
    "--key-file",
    type=PATH,
    help="File whose first line is the API key.  [default: RESNET_SERVE_KEY, if set]",
)
@click.option("--output", type=FILE, help="Write results to a JSON file.")
@click.option("--plot", type=FILE, help="Draw results to a .png or .svg.")
@outputs.overwrite_flag
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("images", nargs=-1, required=True, type=PATH)
@fail_in_one_line
def bench(
    url: str,
    connections: tuple[int, ...],
    rates: tuple[float, ...],
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    images: tuple[Path, ...],
    key_file: Path | None,
    headers: tuple[str, ...],
    **options: Any,
) -> None:
    """Measures throughput and latency of an HTTP classifier.

    Sends the images, or the images in the folders, in turn. Makes one run for each --connections
    (closed loop) or each --rate (open loop). The exit status is 1 if a run had no response 200.
    """
    from service.cli.load.base_url import classifier_url
    from service.cli.load.document import as_text, document
    from service.cli.load.report import Run
    from service.cli.load.runs import run_load
    from service.cli.load.target import Target, check_route

    if rates and len(connections) > 1:
        raise ConfigError("--connections: takes one number with --rate, the most to open")
    outputs.check(output, plot, overwrite=options.pop("overwrite"))
    draw = _drawing(plot)
    bodies = [read(path) for path in files(images)]
    request = {name: options.pop(name) for name in ("form", "content_type")}
    url, is_ours = classifier_url(url)
    target = Target.of(url, bodies, headers=[*headers, *_key(key_file, is_ours)], **request)
    check_route(target, options["timeout"])
    most = connections[0] if connections else MOST_CONNECTIONS
    loads: list[tuple[int, float | None]] = [(most, rate) for rate in rates]
    loads = loads or [(count, None) for count in connections or CONNECTIONS]

    reports = []
    for count, rate in loads:
        run = Run(count, rate=rate, **options)
        with _progress(run.load, run.warm_up + run.seconds) as on_progress:
            reports.append(run_load(target, run, on_progress))
        if not as_json:
            _show(reports[-1], first=len(reports) == 1)
    text = as_text(document(target, reports))
    if output:
        outputs.write_text(output, text)
    if draw and plot:
        draw(reports, plot, target.url)
    if as_json:
        click.echo(text, nl=False)
    if any(OK not in report.answers for report in reports):
        raise click.exceptions.Exit(1)


def _key(file: Path | None, is_ours: bool) -> list[str]:
    """The header with the API key; that of the environment is for no other server."""
    from service.config import loading

    key = loading.client_key(file) if file or is_ours else None
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError("RESNET_SERVE_KEY: must be printable ASCII characters")
    return [f"Authorization: Bearer {key}"] if key else []


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """`paths`, with each folder replaced by the images in it, sorted by name.

    Raises:
        ConfigError: a path does not exist, or a folder has no images.
    """
    from models.data.members import is_image

    for path in paths:
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if is_image(file.name))
            if not images:
                raise ConfigError(f"{path}: has no images")
            yield from images
        elif path.exists():
            yield path
        else:
            raise ConfigError(f"{path}: no such file or folder")


def _drawing(path: Path | None) -> Callable[[Sequence[Report], Path, str], None] | None:
    """The function that draws to `path`; fails now, not after minutes of load."""
    if path is None:
        return None
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: must end in {' or '.join(PICTURES)}")
    try:
        from service.cli.load.plot import draw
    except ModuleNotFoundError as error:
        raise ConfigError(f"--plot needs {error.name}: {install('bench')}") from None
    return draw


@contextmanager
def _progress(load: str, seconds: float) -> Iterator[Callable[[float], object]]:
    """A function for the elapsed seconds of a run."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed} of {total:g} s"
    with bar(total=seconds, desc=load, unit=" s", bar_format=shape, leave=False) as shown:
        yield lambda elapsed: shown.update(min(elapsed, seconds) - shown.n)


def _show(report: Report, *, first: bool) -> None:
    """A row of the table, preceded by the header if it is the first."""
    names = ("p50", "p90", "p95", "p99", "p99.9", "max")
    if first:
        columns = "".join(f"{name:>9}" for name in names)
        click.echo(f"{'load':>18}  {'images/s':>8}  {'goodput':>8}{columns} ms  responses")
    goodput = "-" if report.goodput is None else f"{report.goodput:.1f}"
    cells = "".join(
        f"{report.latency_ms[n]:9.2f}" if n in report.latency_ms else f"{'-':>9}" for n in names
    )
    responses = ", ".join(
        f"{count} x {status or 'none'}" for status, count in report.answers.items()
    )
    if report.no_connection:
        responses += f", {report.no_connection} x no connection"
    if report.generator_late:
        responses += f", {report.generator_late} x not sent as the generator was too busy"
    click.echo(
        f"{report.run.load:>18}  {report.images_per_second:8.1f}  {goodput:>8}{cells}"
        f"     {responses}"
    )
    for status, ms in report.refused_ms.items():
        click.echo(f"{'':>18}  {status}: p50 {ms['p50']:.2f}, p99 {ms['p99']:.2f} ms")
    if report.phases_ms:
        phases = ", ".join(
            f"{name} {ms['p50']:.2f}/{ms['p99']:.2f}" for name, ms in report.phases_ms.items()
        )
        click.echo(f"{'':>18}  p50/p99 ms: {phases}")
    if OK not in report.answers:
        advice = "; send a key by --key-file or RESNET_SERVE_KEY" if 401 in report.answers else ""
        failures = "no request succeeded; the figures above measure only failures"
        click.echo(f"{'':>18}  {failures}{advice}")
    if report.generator_cpu > 0.9:
        click.echo(f"{'':>18}  the generator ran out of CPU; the server may be capable of more")
