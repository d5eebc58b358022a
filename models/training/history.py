"""The log of a run folder, as JSON lines, CSV and TensorBoard's scalars; and its curves."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models import files
from models.extras import install
from models.plotting import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG, TABLE = "log.jsonl", "log.csv"
WHOLE = ("epoch", "step")
LATER = ("validation_loss", "validation_top1")  # Logs of earlier versions lack them.
OPTIONAL = ("test_loss", "test_top1", "test_top5", *LATER)
# TensorBoard's names; names with the same part before the slash share a chart.
SCALARS = {
    "learning_rate": "learning_rate",
    "loss": "loss/train",
    "test_loss": "loss/test",
    "accuracy": "top1/train",
    "test_top1": "top1/test",
    "test_top5": "top5/test",
    "validation_loss": "loss/validation",
    "validation_top1": "top1/validation",
    "images_per_second": "images_per_second",
}
PICTURES = (".pdf", ".png", ".svg")
# Okabe and Ito's colours, which are safe for colour-blind readers.
TRAIN, TEST, RATE, VALIDATION = "#0072b2", "#d55e00", "#009e73", "#cc79a7"


@dataclass(frozen=True, slots=True)
class Epoch:
    """The figures of one epoch.

    `epoch`: counted from 1. `step`: steps since the run began.
    `learning_rate`: of the epoch's last step.
    `loss`, `accuracy`: means over the augmented training images.
    `test_loss`, `test_top1`, `test_top5`: on the test images; None if not measured.
    `images_per_second`: of training. `seconds`: of the whole epoch, including what is measured.
    `validation_loss`, `validation_top1`: on the validation images; None if not measured.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    test_loss: float | None
    test_top1: float | None
    test_top5: float | None
    images_per_second: float
    seconds: float
    validation_loss: float | None = None
    validation_top1: float | None = None


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class History:
    """The log in `folder`, which is created if necessary; existing rows are continued.

    `log.jsonl` is the file that is read back; `log.csv` and TensorBoard's files have the same
    rows. If TensorBoard is not installed, `say` gets the command to install it, once.

    Raises:
        ValueError: an existing log is damaged; the message names the file and the line.
    """

    def __init__(self, folder: Path, say: Callable[[str], object] = _on_stderr) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._say = say
        self._rows = read(folder) if (folder / LOG).exists() else []
        self._begun = False
        self._board: Any = None

    @property
    def rows(self) -> tuple[Epoch, ...]:
        return tuple(self._rows)

    def append(self, row: Epoch) -> None:
        """Writes a row, which readers see at once.

        Raises:
            ValueError: `row` is not later than the last one.
        """
        if self._rows and row.step <= self._rows[-1].step:
            raise ValueError(
                f"{self.folder / LOG}: step {row.step} cannot follow step {self._rows[-1].step}; "
                "truncate the log first"
            )
        if not self._begun:
            # A killed run may have left half a row, which must not precede this one.
            self._rewrite()
            self._open_board()
            self._begun = True
        self._rows.append(row)
        for name, text in ((LOG, _json(row)), (TABLE, _csv([row]))):
            with (self.folder / name).open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        if self._board is not None:
            for field, scalar in SCALARS.items():
                value = getattr(row, field)
                if value is not None:
                    self._board.add_scalar(scalar, value, row.step)
            self._board.flush()

    def truncate(self, step: int) -> None:
        """Drops the rows after `step`, for a run that resumes from there."""
        self.close()
        self._rows = [row for row in self._rows if row.step <= step]
        self._rewrite()
        if not self._rows:
            # TensorBoard sorts files by name, and names from the same second are ambiguous.
            for file in self.folder.glob("events.out.tfevents.*"):
                file.unlink()

    def close(self) -> None:
        """Closes TensorBoard's file; a later `append` begins a new one."""
        if self._board is not None:
            self._board.close()
            self._board = None
        self._begun = False

    def _rewrite(self) -> None:
        log = "".join(_json(row) for row in self._rows)
        for name, text in ((LOG, log), (TABLE, _csv(self._rows, header=True))):
            with files.atomic(self.folder / name) as file:
                file.write_text(text, "utf-8", newline="")

    def _open_board(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say(f"no TensorBoard files are written: {install('train')}")
            # Say it once, however often the log is opened.
            self._say = lambda line: None
            return
        # Hide events of an earlier process that are no longer in the log.
        purged = (self._rows[-1].step if self._rows else 0) + 1
        self._board = SummaryWriter(str(self.folder), purge_step=purged)


def read(folder: Path) -> list[Epoch]:
    """The rows of a run folder's log, without an incomplete last line.

    Raises:
        ValueError: there is no log, or another line is damaged; the message names it.
    """
    path = folder / LOG
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    rows: list[Epoch] = []
    for number, line in enumerate(lines, 1):
        try:
            row = _row(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is damaged ({error})") from None
        if rows and row.step <= rows[-1].step:
            raise ValueError(f"{path}: line {number} is not later than the line before")
        rows.append(row)
    return rows


def _row(values: Any) -> Epoch:
    names = [field.name for field in fields(Epoch)]
    if (
        not isinstance(values, dict)
        or set(names) - set(LATER) - set(values)
        or (set(values) - set(names))
    ):
        raise ValueError(f"not an object of {', '.join(names)}")
    for name, value in values.items():
        if value is None and name not in WHOLE:
            # JSON cannot represent a figure that is not finite.
            values[name] = None if name in OPTIONAL else math.nan
        elif isinstance(value, bool) or not isinstance(
            value, int if name in WHOLE else int | float
        ):
            raise ValueError(f"{name} is {value!r}")
    return Epoch(**values)


def _json(row: Epoch) -> str:
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(row).items()
    }
    return json.dumps(values) + "\n"


def _csv(rows: Sequence[Epoch], *, header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue()


def curves(runs: Path | Sequence[Path | Sequence[Epoch]], path: Path, title: str = "") -> None:
    """Plots loss, top-1 error and learning rate by epoch to a .png, .svg or .pdf file.

    `runs` is a run folder, or several runs, each a folder or its rows. Several runs get thin
    lines, with their mean and a band of one population standard deviation on each side.

    Raises:
        ValueError: matplotlib is not installed, the format is unknown, or there is no log or row.
    """
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{path}: must end in {', '.join(PICTURES)}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f"{path}: curves need matplotlib: {install('train')}") from None
    logs: list[Sequence[Epoch]] = []
    for run in [runs] if isinstance(runs, Path) else runs:
        rows = read(run) if isinstance(run, Path) else run
        if not rows:
            raise ValueError(f"{run if isinstance(run, Path) else path}: no epoch is logged yet")
        logs.append(rows)
    if not logs:
        raise ValueError(f"{path}: no run to draw")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        loss, error, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
        losses = {
            "train": ("loss", TRAIN),
            "validation": ("validation_loss", VALIDATION),
            "test": ("test_loss", TEST),
        }
        tops = {
            "train": ("accuracy", TRAIN),
            "validation": ("validation_top1", VALIDATION),
            "test": ("test_top1", TEST),
        }
        _panel(loss, "Loss", logs, losses, ".3f")
        _panel(error, "Top-1 error, %", logs, tops, ".2f")
        _panel(rate, "Learning rate", logs, {"": ("learning_rate", RATE)}, "")
        with files.atomic(path) as file:
            figure.savefig(file, dpi=150, format=path.suffix[1:].lower())


def _panel(
    axes: Axes,
    title: str,
    logs: Sequence[Sequence[Epoch]],
    drawn: dict[str, tuple[str, str]],
    digits: str,
) -> None:
    """One chart of `curves`; `drawn` maps each label to a field of `Epoch` and a colour."""
    from matplotlib.ticker import MaxNLocator

    shown: list[NDArray[np.float64]] = []
    for label, (field, colour) in drawn.items():
        lines = [_line(rows, field) for rows in logs]
        common = sorted(set.intersection(*(set(line) for line in lines)))
        if not common:
            continue
        values = np.array([[line[epoch] for epoch in common] for line in lines])
        mean, spread = values.mean(0), values.std(0)
        several = len(lines) > 1
        for line in lines if several else ():
            axes.plot(list(line), list(line.values()), color=colour, linewidth=0.6, alpha=0.45)
        if several:
            axes.fill_between(common, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        last = f"{mean[-1]:{digits}}" + (f" ± {spread[-1]:{digits}}" if several else "")
        marker = "o" if len(common) == 1 else ""
        name = f"{label}, last {last}" if label else None
        axes.plot(common, mean, color=colour, linewidth=1.8, marker=marker, label=name)
        shown.append(values)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if shown:
        _scale(axes, np.concatenate([values.ravel() for values in shown]))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")


def _line(rows: Sequence[Epoch], field: str) -> dict[int, float]:
    """A field by epoch, where it was measured; accuracies as errors in per cent."""
    found = {row.epoch: getattr(row, field) for row in rows}
    error = field in ("accuracy", "test_top1", "validation_top1")
    return {
        epoch: 100 * (1 - value) if error else value
        for epoch, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _scale(axes: Axes, values: NDArray[np.float64]) -> None:
    """Logarithmic where values are of different magnitude, and not one of them almost zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    largest, smallest = float(values.max()), float(values.min())
    if not 1e-5 * largest < smallest < 0.25 * largest:
        if smallest >= 0:
            axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    ticks = (1.0, 2.0, 5.0) if smallest < 0.05 * largest else (1.0, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
