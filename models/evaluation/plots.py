"""Plots of evaluations. Needs matplotlib, which the extra `train` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models import files
from models.evaluation.confidence import Reliability
from models.extras import install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
# Okabe and Ito's colours, which are safe for colour-blind readers.
BLUE, SKY, VERMILLION, GREY = "#0072b2", "#56b4e9", "#d55e00", "#777777"
# The most classes that get counts in the cells, and names at the axes.
COUNTED, NAMED = 20, 100
# More rows than this would be indistinguishable.
CELLS = 250


def check(path: Path) -> None:
    """Raises ValueError if no plot can be written to `path`; call it before the work."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture's name must end in one of {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    _figure(1, 1)


def draw_confusion(
    confusion: NDArray[np.int64], labels: Sequence[str], path: Path, title: str = ""
) -> None:
    """Plots a confusion matrix int64 [K, K] of classes (rows) and predictions (columns).

    Colours are fractions of each class's images; on a logarithmic scale if there are too many
    classes for counts in the cells, so that rare mistakes stay visible. If there are too many
    classes for the plot, a cell is the largest fraction in a square of several.
    """
    from matplotlib.colors import LogNorm, Normalize  # noqa: PLC0415 - an extra

    count = len(labels)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    block = -(-count // CELLS)
    norm: Normalize = Normalize(0, 1)
    if count > COUNTED:
        # A single image is light, not white.
        norm = LogNorm(0.3 / max(2, int(totals.max())), 1)
        shares = _largest(shares, block)
        shares = np.where(shares > 0, shares, np.nan)
    side = min(max(5.0, 0.42 * count + 2), 13.0) if count <= NAMED else 9.5
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest", extent=extent)
    if count <= COUNTED:
        _write_counts(axes, confusion, shares)
    if count <= NAMED:
        size = 9.0 if count <= COUNTED else 5.5
        axes.set_xticks(range(count), labels, rotation=90 if count > 5 else 0, fontsize=size)
        axes.set_yticks(range(count), labels, fontsize=size)
        axes.tick_params(length=0)
    axes.set(xlabel="answer", ylabel="class")
    axes.spines[:].set_color("#bbbbbb")
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02, format=lambda v, _: f"{v:.3g}")
    squares = f"; the largest of {block} x {block} classes" if block > 1 else ""
    bar.set_label(f"share of the class's images{squares}")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    _save(figure, path)


def draw_reliability(
    bins: Reliability, path: Path, title: str = "", *, independent: bool = False
) -> None:
    """Plots a reliability diagram (Guo 2017, arXiv:1706.04599, figure 1): accuracy by confidence,
    above the number of images by confidence.

    `independent`: the bins are of pairs of an image and a label; instead of the accuracy, it is
    the share of them in which the image has the label.
    """
    words = ("accuracy", "confidence", "images")
    if independent:
        words = ("share with the label", "probability", "images x labels")
    count = len(bins.counts)
    filled = bins.counts > 0
    edges = (np.arange(count) / count)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    figure = _figure(5.6, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])

    def bars(axes: Axes, heights: NDArray[np.float64], **style: Any) -> None:
        axes.bar(edges, heights, 1 / count, align="edge", edgecolor="white", linewidth=0.8, **style)

    bars(upper, accuracy, color=BLUE, label=words[0])
    # Gaps do not cover the accuracy: an underconfident bin has its gap within the bar.
    surplus = np.maximum(confidence - accuracy, 0)
    lack = np.maximum(accuracy - confidence, 0)
    bars(upper, surplus, bottom=accuracy, color=VERMILLION, label="overconfident by")
    bars(upper, lack, bottom=confidence, color=SKY, label="underconfident by")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel=words[0])
    upper.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, handlelength=1.2
    )
    bars(lower, bins.counts[filled] / bins.counts.sum(), color=GREY)
    lower.set(xlabel=words[1], ylabel=words[2], ylim=(0, None))
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    heading = f"ECE {bins.ece:.2%}, {count} bins, {bins.counts.sum():,} {words[2]}"
    figure.suptitle("\n".join(filter(None, (title, heading))), x=0.01, ha="left", fontsize=11)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with files.atomic(path) as file:
        figure.savefig(file, dpi=DPI, format=path.suffix[1:].lower())


def _largest(shares: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """The largest value of each square of `block` rows and columns; squares at the edges may be
    smaller."""
    short = -len(shares) % block
    padded = np.pad(shares, ((0, short), (0, short)))
    cells = len(padded) // block
    largest: NDArray[np.float64] = padded.reshape(cells, block, cells, block).max(axis=(1, 3))
    return largest


def _figure(width: float, height: float) -> Figure:
    """Of that many inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        raise ValueError(f"a picture needs matplotlib: {install('train')}") from None
    return Figure(figsize=(width, height), layout="constrained")


def _write_counts(axes: Axes, confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size = 8.0 if len(confusion) <= 12 else 6.0
    for (row, column), images in np.ndenumerate(confusion):
        if images:
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, f"{images}", ha="center", va="center", color=colour, size=size)
