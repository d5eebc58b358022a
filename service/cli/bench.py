"""`resnet-serve bench`."""

from __future__ import annotations

import mimetypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from tqdm import tqdm

from service.cli.options import fail_in_one_line
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.cli.load.report import Report

CONNECTIONS = (1, 16, 64)  # of a closed loop
MOST_CONNECTIONS = 256  # of an open loop
PICTURES = (".png", ".svg")


@click.command()
@click.option("--url", default="http://127.0.0.1:8000/v1/classify", show_default=True)
@click.option(
    "--connections",
    type=click.IntRange(1),
    multiple=True,
    help="Closed loop: each sends its next request when it has its answer; repeat for several "
    f"runs; default {', '.join(map(str, CONNECTIONS))}. With --rate: at most so many; default "
    f"{MOST_CONNECTIONS}.",
)
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    help="Open loop: so many requests a second, late answers or not; repeat for several runs. "
    "Latency counts from when a request was due.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "fixed"]),
    default="poisson",
    show_default=True,
    help="Of an open loop's requests: independent of each other, or at even intervals.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals.")
@click.option("--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True)
@click.option(
    "--warm-up-s",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Seconds before those that count.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Give up a request after so many seconds.",
)
@click.option(
    "--slo-ms",
    type=click.FloatRange(0, min_open=True),
    help="Tell the goodput: answers within this latency, per second.",
)
@click.option("--form", metavar="FIELD", help="Send a form with the image in this field.")
@click.option(
    "--content-type",
    default="application/octet-stream",
    show_default=True,
    help="The images' type.",
)
@click.option("--header", "headers", metavar="'K: V'", multiple=True, help="Repeat for several.")
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file.")
@click.option("--plot", type=click.Path(path_type=Path), help="A .png or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fail_in_one_line
def bench(
    url: str,
    connections: tuple[int, ...],
    rates: tuple[float, ...],
    arrivals: Literal["poisson", "fixed"],
    seed: int,
    seconds: float,
    warm_up_s: float,
    timeout_s: float,
    slo_ms: float | None,
    form: str | None,
    content_type: str,
    headers: tuple[str, ...],
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    images: tuple[Path, ...],
) -> None:
    """Throughput and latency of an HTTP classifier, loaded with images or folders of images that
    are sent in turn. A run for each --connections (closed loop) or each --rate (open loop)."""
    from service.cli.load.document import as_text, document
    from service.cli.load.runs import closed_loop, open_loop
    from service.cli.load.target import Target

    if rates and len(connections) > 1:
        raise ConfigError("--connections: one number with --rate, the most to open")
    for path in (output, plot):
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
    draw = _drawing(plot)
    bodies = [path.read_bytes() for path in files(images)]
    target = Target.of(url, bodies, form=form, content_type=content_type, headers=headers)

    reports = []
    for load in rates or connections or CONNECTIONS:
        unit = "/s" if rates else " connections"
        with _progress(f"{load:g}{unit}", warm_up_s + seconds) as on_progress:
            if rates:
                report = open_loop(
                    target,
                    rate=load,
                    connections=connections[0] if connections else MOST_CONNECTIONS,
                    arrivals=arrivals,
                    seed=seed,
                    seconds=seconds,
                    warm_up=warm_up_s,
                    timeout=timeout_s,
                    slo_ms=slo_ms,
                    on_progress=on_progress,
                )
            else:
                report = closed_loop(
                    target,
                    connections=int(load),
                    seconds=seconds,
                    warm_up=warm_up_s,
                    timeout=timeout_s,
                    slo_ms=slo_ms,
                    on_progress=on_progress,
                )
        reports.append(report)
        if not as_json:
            _show(report, first=len(reports) == 1)
    text = as_text(document(target, reports))
    if output:
        output.write_text(text, "utf-8")
    if draw and plot:
        draw(reports, plot, url)
    if as_json:
        click.echo(text, nl=False)


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """`paths`, and in the place of a folder the images in it, by name.

    Raises:
        ConfigError: a path is not there, or a folder has no images.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(entry for entry in path.rglob("*") if _is_image(entry))
            if not found:
                raise ConfigError(f"{path}: has no images")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ConfigError(f"{path}: no such file or folder")


def _is_image(path: Path) -> bool:
    kind, _ = mimetypes.guess_type(path.name)
    return path.is_file() and (kind or "").startswith("image/")


def _drawing(path: Path | None) -> Callable[[Sequence[Report], Path, str], None] | None:
    """What draws to `path`; whatever is in its way is said before minutes of load."""
    if path is None:
        return None
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: must end in {' or '.join(PICTURES)}")
    try:
        from service.cli.load.plot import draw
    except ModuleNotFoundError as error:
        raise ConfigError(f"--plot needs {error.name}: pip install 'resnet-serve[bench]'") from None
    return draw


@contextmanager
def _progress(load: str, seconds: float) -> Iterator[Callable[[float], None] | None]:
    """What a run tells its elapsed seconds; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed} of {postfix}"
    with tqdm(total=seconds, desc=load, bar_format=shape, leave=False) as bar:
        bar.set_postfix_str(f"{seconds:g} s")
        yield lambda elapsed: _advance(bar, min(elapsed, seconds))


def _advance(bar: tqdm[Any], elapsed: float) -> None:
    bar.update(elapsed - bar.n)


def _show(report: Report, *, first: bool) -> None:
    """A row of the table, its header before the first; below it what is not always there."""
    names = ("p50", "p90", "p95", "p99", "p99.9", "max")
    if first:
        columns = "".join(f"{name:>9}" for name in names)
        click.echo(f"{'load':>18}  {'images/s':>8}  {'goodput':>8}{columns} ms  answers")
    goodput = "-" if report.goodput is None else f"{report.goodput:.1f}"
    cells = "".join(
        f"{report.latency_ms[n]:9.2f}" if n in report.latency_ms else f"{'-':>9}" for n in names
    )
    answers = ", ".join(f"{count} x {status or 'none'}" for status, count in report.answers.items())
    click.echo(
        f"{report.run.load:>18}  {report.images_per_second:8.1f}  {goodput:>8}{cells}     {answers}"
    )
    for status, ms in report.refused_ms.items():
        click.echo(f"{'':>18}  {status}: p50 {ms['p50']:.2f}, p99 {ms['p99']:.2f} ms")
    if report.phases_ms:
        phases = ", ".join(
            f"{name} {ms['p50']:.2f}/{ms['p99']:.2f}" for name, ms in report.phases_ms.items()
        )
        click.echo(f"{'':>18}  p50/p99 ms: {phases}")
    if report.generator_cpu > 0.9:
        click.echo(f"{'':>18}  the generator had no CPU left: more may have been possible")
