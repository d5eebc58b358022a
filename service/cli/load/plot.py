"""Plots of reports. Needs matplotlib, from the extra `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from models import files
from models.plotting import STYLE
from service.cli.load.report import Report

# Okabe and Ito's palette for colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def draw(reports: Sequence[Report], path: Path, title: str = "") -> None:
    """Writes a .png or .svg: latency by quantile and, for several runs, by throughput.

    Raises:
        ValueError: matplotlib does not write files with this suffix.
    """
    several = len(reports) > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5 if several else 6.5, 4.2), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        left, *right = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
        _by_quantile(left, reports)
        if right:
            _by_throughput(right[0], reports)
        with files.atomic(path) as file:
            figure.savefig(file, dpi=150, format=path.suffix[1:].lower())


def _by_quantile(axes: Axes, reports: Sequence[Report]) -> None:
    """The x axis has equal steps from 90 to 99 to 99.9 %, to give the tail room."""
    drawn = [report for report in reports if report.histogram.total]
    most = max([2, *(report.histogram.total for report in drawn)])
    for index, report in enumerate(drawn):
        total = report.histogram.total
        tails = np.geomspace(1.0, total, 400)  # One in this many is slower.
        seconds = report.histogram.quantiles(1 - 1 / tails)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(tails, seconds * 1000, color=colour, label=report.run.load, linewidth=1.8)
    if slo := next((report.run.slo_ms for report in reports if report.run.slo_ms), None):
        axes.axhline(slo, color="#777777", linewidth=1, linestyle="--")
        axes.annotate(
            f"SLO {slo:,.1f} ms",
            (1, slo),
            xytext=(0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="#777777",
        )
    axes.set_xscale("log")
    axes.set_xlim(1, most)
    ticks = [1 / (1 - share) for share in SHARES if 1 / (1 - share) <= most * 1.001]
    axes.set_xticks(ticks, [f"{100 * (1 - 1 / tick):.5g} %" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _dress(axes, len(drawn))
    axes.set_xlabel("share of responses within this latency")
    axes.set_title("Latency by quantile")


def _by_throughput(axes: Axes, reports: Sequence[Report]) -> None:
    for mode, marker in (("closed", "o"), ("open", "s")):
        runs = sorted(
            (r for r in reports if r.run.mode == mode and r.latency_ms),
            key=lambda report: report.run.rate or report.run.connections,
        )
        for name, colour, dashes in (("p50", COLOURS[0], "-"), ("p99", COLOURS[1], "--")):
            axes.plot(
                [report.images_per_second for report in runs],
                [report.latency_ms[name] for report in runs],
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=5,
                label=f"{name}, {mode} loop" if runs else None,
            )
        for report in runs:
            label = f"{report.run.rate:g}/s" if report.run.rate else str(report.run.connections)
            axes.annotate(
                label,
                (report.images_per_second, report.latency_ms["p99"]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="#444444",
            )
    axes.set_xlim(left=0)
    _dress(axes, len(axes.get_legend_handles_labels()[0]))
    axes.set_xlabel("images per second")
    axes.set_title("Latency by throughput, labelled by load")


def _dress(axes: Axes, entries: int) -> None:
    """Plain milliseconds on the y axis, and room for the legend above the lines."""
    axes.set_ylabel("ms")
    if not entries:
        axes.text(0.5, 0.5, "no image was classified", transform=axes.transAxes, ha="center")
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    columns = 1 + entries // 6
    axes.set_ylim(low, high * (high / low) ** (0.08 * -(-entries // columns)))
    axes.legend(frameon=False, loc="upper left", ncols=columns)
