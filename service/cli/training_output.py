"""What `train` writes and says."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli import outputs
from service.cli.figures import FEW
from service.cli.progress import ProgressLines, bar

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.storage import Storage
    from models.training.history import Epoch
    from models.training.loop import Options, Progress
    from models.training.parallel import World
    from models.training.plan import Plan
    from models.views import Views

WORST = 10  # Rows of the table of classes.
STEPS_SECONDS = 300.0  # Between lines within an epoch, where there is no bar.


@dataclass(frozen=True)
class TrainingOutput:
    out: Path
    seed: int | None
    seeds: tuple[int, ...] | None
    name: str | None
    card: Path | None
    resume: bool
    restart: bool
    overwrite: bool
    views: Views | None
    storage: Storage

    @property
    def by_seed(self) -> dict[int, Path]:
        """The bundle to write for each seed."""
        if not self.seeds:
            return {self.seed or 0: self.out}
        return {seed: self.out.with_stem(f"{self.out.stem}-{seed}") for seed in self.seeds}

    def check(self) -> None:
        """Fails now, not after the training."""
        if self.resume and self.restart:
            raise ValueError("--resume or --restart, not both")
        if self.seed is not None and self.seeds:
            raise ValueError("--seed or --seeds, not both")
        unfinished = [path for path in self.by_seed.values() if not self.is_complete(path)]
        for path in unfinished:
            self._check(path)
        if self.seeds and unfinished:
            outputs.check(self.curves, overwrite=self.overwrite)

    def _check(self, path: Path) -> None:
        """Fails if a run that writes `path` would replace what the user did not give up."""
        folder, interrupted = folder_of(path), state_of(path).exists()
        if interrupted and not self.resume and not self.restart:
            raise ValueError(
                f"{folder} holds an interrupted run; use --resume to continue it or --restart to "
                "discard it"
            )
        outputs.check(path, overwrite=self.overwrite)
        discards = self.overwrite or (interrupted and (self.resume or self.restart))
        if not discards and _has_files(folder):
            raise ValueError(
                f"{folder} has files, perhaps of another run; add --overwrite to discard them, or "
                "choose another OUT"
            )

    @contextmanager
    def claimed(self, path: Path) -> Iterator[None]:
        """Keeps other processes from training for the same bundle, and discards what is left of
        an earlier run, unless it is resumed.

        Raises:
            ValueError: another process does, or has written it since `check`.
        """
        folder = folder_of(path)
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{folder}: another training writes there; wait for its end, or choose "
                    "another OUT"
                ) from None
            except OSError:  # Some network file systems have no locks.
                pass
            self._check(path)
            if not self.resume:
                _empty(folder)
            yield
        finally:
            os.close(lock)

    def is_complete(self, path: Path) -> bool:
        """Whether there is nothing left to resume of the run that writes `path`."""
        return self.resume and path.exists() and not state_of(path).exists()

    @property
    def curves(self) -> Path:
        """The picture of all seeds."""
        return self.out.with_name(f"{self.out.stem}-curves.png")


def folder_of(out: Path) -> Path:
    """The folder of a run that writes this bundle."""
    return out.with_suffix(".run")


def _empty(folder: Path) -> None:
    for left in list(folder.iterdir()):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _has_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def state_of(out: Path) -> Path:
    from models.training.run import STATE

    return folder_of(out) / STATE


@dataclass(frozen=True)
class Teller:
    """Says how training goes: on a terminal with a bar, elsewhere by a line for each epoch."""

    hidden: bool

    def say(self, line: str) -> None:
        if not self.hidden:
            click.echo(line)

    def warn(self, line: str) -> None:
        if not self.hidden:
            click.echo(line, err=True)

    @contextmanager
    def following(
        self, name: str
    ) -> Iterator[tuple[Callable[[Progress], None], Callable[[Epoch], None]]]:
        """What to call with each progress and each epoch."""
        with bar(
            hidden=self.hidden, every=STEPS_SECONDS, total=1, unit=" steps", desc=name
        ) as shown:
            yield partial(_show, shown), partial(self._tell, shown)

    def _tell(self, shown: Any, row: Epoch) -> None:
        if isinstance(shown, ProgressLines):
            self.say(_line(row))
            shown.told()
        elif row.test_top1 is not None or row.validation_top1 is not None:
            shown.write(_line(row))


def _show(shown: Any, progress: Progress) -> None:
    shown.total = progress.steps
    if not shown.initial:
        shown.initial = progress.step
    shown.set_postfix_str(
        f"epoch {progress.epoch + 1}, loss {progress.loss:.3f}, "
        f"accuracy {progress.accuracy:.1%}, {progress.images_per_second:.0f} images/s",
        refresh=False,
    )
    shown.update(progress.step - shown.n)


def _line(row: Epoch) -> str:
    measured = (("validation", row.validation_top1), ("test", row.test_top1))
    known = [f"{name} top-1 {value:.2%}" for name, value in measured if value is not None]
    if row.test_top1 is None:
        known = [f"accuracy {row.accuracy:.2%}", *known]
    return f"epoch {row.epoch}: " + ", ".join([f"loss {row.loss:.3f}", *known])


def train_one(
    plan: Plan, out: Path, described: dict[str, str], world: World, options: Options, teller: Teller
) -> None:
    """Trains and writes one bundle; `described`: its name and card."""
    from models import bundle
    from models.training.run import train_bundle

    folder = folder_of(out)
    folder.mkdir(exist_ok=True)
    try:
        with teller.following(out.stem) as (report, after_epoch):
            trained = train_bundle(
                plan,
                **described,
                folder=folder,
                world=world,
                options=options,
                report=report,
                after_epoch=after_epoch,
            )
        if world.leads:
            bundle.write(trained, out)
            state_of(out).unlink()
    except KeyboardInterrupt:
        if state_of(out).exists():
            teller.warn("interrupted; the same command with --resume goes on from the last epoch")
        raise
    if not world.leads:
        return
    drawn = _draw([folder], folder / "curves.png", teller)
    for line in _results(trained, plan):
        teller.say(line)
    if reason := trained.provenance.get("calibration", {}).get("undetermined"):
        teller.warn(f"no temperature is fitted, it remains {trained.temperature:g}: {reason}")
    what = "its log and curves" if drawn else "its log"
    teller.say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), {what} to {folder}")


def _results(trained: Bundle, plan: Plan) -> Iterator[str]:
    """Which epoch is kept, the accuracy on each set, and the classes of validation."""
    if kept := trained.provenance.get("kept"):
        yield _kept(kept, plan.recipe.keep)
    few = len(trained.labels) <= FEW
    for source, figures in trained.metrics.items():
        fifth = "" if few else f", top-5 {figures['top5']:.2%}"
        yield f"{source}: top-1 {figures['top1']:.2%}{fifth}"
        if "per_class" in figures:
            yield from classes(figures, trained.labels)


def _kept(kept: dict[str, Any], keep: str) -> str:
    accuracy = f"{kept['validation_top1']:.1%} of the validation images"
    early = f"; stopped early, after {kept['epochs']} epochs" if kept["stopped_early"] else ""
    if keep == "last":
        return f"kept the last epoch: {accuracy}{early}"
    if not kept["epoch"]:
        return (
            f"kept the weights as they were, {accuracy}: none of {kept['epochs']} epochs is "
            f"better by more than chance{early}"
        )
    return f"kept epoch {kept['epoch']} of {kept['epochs']}: {accuracy}{early}"


def classes(figures: dict[str, Any], labels: tuple[str, ...]) -> Iterator[str]:
    """The classes with the lowest accuracy, and what they are most often taken for."""
    known = [each for each in figures["per_class"] if each["images"]]
    shown = sorted(known, key=lambda each: each["accuracy"])[:WORST]
    width = max(len(each["label"]) for each in shown)
    for each in shown:
        line = f"  {each['label']:<{width}} {each['accuracy']:8.2%} of {each['images']}"
        yield line + _taken(each["label"], figures, labels)
    if len(known) > WORST:
        yield f"  the {WORST} worst of {len(known)} classes; the bundle's metrics have all"
    if missing := [each["label"] for each in figures["per_class"] if not each["images"]]:
        yield f"  without images: {', '.join(missing[:WORST])}" + ", ..." * (len(missing) > WORST)


def _taken(label: str, figures: dict[str, Any], labels: tuple[str, ...]) -> str:
    """What images of a class are most often taken for, if the figures say."""
    if "confusion" not in figures:
        return ""
    row = dict(zip(labels, figures["confusion"][labels.index(label)], strict=True))
    other = max((name for name in row if name != label), key=row.__getitem__, default=label)
    return f", {row[other]} taken for {other}" if other != label and row[other] else ""


def conclude(output: TrainingOutput, teller: Teller) -> None:
    """Says the mean and standard deviation over the seeds, and draws their curves."""
    from models import bundle

    outs = list(output.by_seed.values())
    if len(outs) < 2:
        return
    metrics = [bundle.read(path, allow=None).metrics for path in outs]
    for source in metrics[0]:
        top1 = [figures[source]["top1"] for figures in metrics]
        teller.say(
            f"{source}, {len(top1)} seeds: top-1 {statistics.fmean(top1):.2%} "
            f"+- {statistics.pstdev(top1):.2%}"
        )
    _draw([folder_of(path) for path in outs], output.curves, teller)


def _draw(runs: list[Path], picture: Path, teller: Teller) -> bool:
    """Whether the curves could be drawn."""
    from models.training import history

    try:
        history.curves(runs, picture)
    except ValueError as error:  # The bundle is written; a missing picture is not a failure.
        teller.warn(f"no curves: {error}")
        return False
    return True
