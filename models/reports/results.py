"""Finished training runs, grouped by configuration over their seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from models import bundle, labels, variants
from models.architecture import Architecture
from models.bundle import Bundle, BundleError
from models.reports import published
from models.reports.published import DataSet, Precision, Published
from models.training import history
from models.training.history import Epoch
from models.training.recipe import completed

SUFFIX, RUN_FOLDER = ".safetensors", ".run"
# Fields of a recipe that change nothing of the training.
WORDS = ("paper", "published")
DATA_SETS: dict[str, DataSet] = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet1k": "ImageNet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bundle, evaluated on one test set; `top1` and `top5` are fractions of `images`.

    `recipe` is as the bundle records it; `models.training.recipe.completed` adds what it lacks.
    `precision` is "" if the bundle does not say.
    `rows` is the log of its run folder, empty if there is none.
    """

    path: Path
    variant: str | None
    architecture: Architecture
    data_set: DataSet | None
    data: str
    recipe: dict[str, Any]
    seed: int
    test: str
    top1: float
    top5: float | None
    images: int
    hardware: str
    precision: Precision
    images_per_second: float | None
    seconds: float | None
    rows: tuple[Epoch, ...]

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields that differ from the variant's, apart from the number of classes."""
        if self.variant is None:
            return {}
        named = variants.variant(self.variant).architecture
        return {
            field.name: value
            for field in fields(Architecture)
            if field.name != "num_classes"
            and (value := getattr(self.architecture, field.name)) != getattr(named, field.name)
        }

    @property
    def configuration(self) -> str:
        """A key that is equal for runs that differ only in their seed and their machine."""
        recipe = {name: v for name, v in completed(self.recipe).items() if name not in WORDS}
        network = asdict(self.architecture)
        parts = [network, self.data, self.test, self.images, recipe, self.precision]
        return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and population standard deviation, which torch-resnet also reports."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of `values`; None if a value is missing or there are none."""
        everything = list(values)
        known = [value for value in everything if value is not None]
        if not known or len(known) < len(everything):
            return None
        return cls(fmean(known), pstdev(known))


def collect(
    paths: Sequence[Path], skipped: Callable[[str], object] = lambda line: None
) -> list[Run]:
    """The runs of `paths`: bundles, their run folders, or folders of bundles.

    `skipped` is called with a line for each file in a folder that is not an evaluated run.

    Raises:
        ValueError: a given path is not a run, or there are no runs; the message names it.
    """
    runs: dict[tuple[Path, str], Run] = {}
    for path in paths:
        for file in _files(path):
            try:
                found = list(_runs(file))
            except ValueError as error:
                if file == path or not path.is_dir() or path.suffix == RUN_FOLDER:
                    raise
                skipped(str(error))
                continue
            runs |= {(file.resolve(), run.test): run for run in found}
    if not runs:
        raise ValueError(f"{', '.join(map(str, paths))}: no finished training run")
    return list(runs.values())


def _files(path: Path) -> list[Path]:
    if path.suffix == RUN_FOLDER and path.is_dir():
        file = path.with_suffix(SUFFIX)
        if not file.is_file():
            raise ValueError(f"{path}: the run has not finished: there is no {file.name} beside it")
        return [file]
    return sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]


def _runs(path: Path) -> Iterator[Run]:
    """A run for each test set that the bundle was evaluated on."""
    read = bundle.read(path, allow=None)
    if read.own_code:
        raise BundleError(
            f"{path}: a network of your own code, {' and '.join(read.own_code)}, has no published "
            "figures to stand beside"
        )
    provenance = read.provenance
    recipe, seed = provenance.get("recipe"), provenance.get("seed")
    if not (isinstance(recipe, dict) and isinstance(seed, int)):
        raise BundleError(
            f"{path}: not trained by `resnet-serve train`: it records no recipe and seed"
        )
    tests = {
        source: figures
        for source, figures in read.metrics.items()
        if isinstance(figures, dict)
        and isinstance(figures.get("top1"), int | float)
        and isinstance(figures.get("images"), int)
    }
    if not tests:
        raise BundleError(f"{path}: was not measured; train with test data")
    folder = path.with_suffix(RUN_FOLDER)
    rows = tuple(history.read(folder)) if (folder / history.LOG).exists() else ()
    for source, figures in tests.items():
        yield Run(
            path=path,
            variant=read.variant,
            architecture=read.architecture,
            data_set=_data_set(read),
            data=str(provenance.get("data", "")),
            recipe=recipe,
            seed=seed,
            test=source,
            top1=figures["top1"],
            top5=figures.get("top5"),
            images=figures["images"],
            hardware=_hardware(provenance),
            precision=_precision(provenance),
            images_per_second=provenance.get("images_per_second") or _speed(rows),
            seconds=provenance.get("seconds") or sum(row.seconds for row in rows) or None,
            rows=rows,
        )


def _data_set(read: Bundle) -> DataSet | None:
    """The data set with these classes, in any order; file names may be misleading."""
    for name, data_set in DATA_SETS.items():
        known = labels.read(name)
        if set(read.labels) in (set(known), set(labels.synsets(known))):
            return data_set
    return None


def _hardware(provenance: dict[str, Any]) -> str:
    machine = provenance.get("hardware") or provenance.get("machine")
    parts = (machine, provenance.get("device"), provenance.get("precision"))
    return " ".join(str(part) for part in parts if part)


def _precision(provenance: dict[str, Any]) -> Precision:
    computed = provenance.get("precision")
    return "" if computed is None else "full" if computed == "fp32" else "mixed"


def _speed(rows: Sequence[Epoch]) -> float | None:
    return median(row.images_per_second for row in rows) if rows else None


@dataclass(frozen=True, slots=True)
class Result:
    """Runs that differ only in their seeds."""

    runs: tuple[Run, ...]

    @property
    def error(self) -> Spread:
        """Top-1 error of the saved bundles, as a percentage."""
        spread = Spread.of([100 * (1 - run.top1) for run in self.runs])
        assert spread is not None
        return spread

    @property
    def best_error(self) -> Spread | None:
        """Top-1 error of each run's best epoch on the test images, if all runs have a log."""
        return Spread.of(
            [
                min(
                    (100 * (1 - row.test_top1) for row in run.rows if row.test_top1 is not None),
                    default=None,
                )
                for run in self.runs
            ]
        )

    @property
    def hours(self) -> Spread | None:
        return Spread.of([run.seconds and run.seconds / 3600 for run in self.runs])

    @property
    def images_per_second(self) -> Spread | None:
        return Spread.of([run.images_per_second for run in self.runs])

    def published(self, *, by_torch_resnet: bool) -> list[Published]:
        run = self.runs[0]
        if run.variant is None or run.data_set is None:
            return []
        return published.find(
            run.variant,
            run.data_set,
            shortcut=run.architecture.shortcut,
            dropout=run.architecture.dropout,
            by_torch_resnet=by_torch_resnet,
            zero_init_residual=completed(run.recipe)["zero_init_residual"] is True,
            precision=run.precision,
        )


def aggregate(runs: Sequence[Run]) -> list[Result]:
    """Results sorted by data and network, in the order of `variants.names()`.

    Raises:
        ValueError: two runs of a configuration have the same seed; the message names them.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.configuration, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        for one, other in pairwise(group):
            if one.seed == other.seed:
                raise ValueError(f"{one.path} and {other.path} both have seed {one.seed}")
    order = {name: position for position, name in enumerate(variants.names())}

    def place(group: list[Run]) -> tuple[Any, ...]:
        first = group[0]
        position = order.get(first.variant or "", len(order))
        return (first.data, position, first.variant or "", first.configuration)

    return [Result(tuple(group)) for group in sorted(groups.values(), key=place)]
