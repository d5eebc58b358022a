"""The images of `train`: what it trains on, and what it sets aside from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.training.recipes import Recipe
from service.cli.options import bar, part_of, read_dataset

if TYPE_CHECKING:
    from models.data.collection import Collection
    from models.data.datasets import Corrupt, Dataset
    from models.data.source import Source
    from models.preprocess import InputSpec
    from models.training.parallel import World

AUTO, NONE = "auto", "none"
SHARE = 0.2
# Of the images, for a validation set that nobody asked for: fewer tell nothing, and more are read
# into memory for little.
FEWEST, MOST = 40, 25_000


@dataclass(frozen=True)
class Validation:
    """Where validation images come from: a `share` of the training images, a `count` of them, or
    another `path`; none if all are empty. `auto`: nobody said."""

    share: float = 0.0
    count: int = 0
    path: Path | None = None
    auto: bool = False


class ValidationParameter(click.ParamType[Validation]):
    """A percentage or a number of the training images, another set's path, or none."""

    name = "20%|N|PATH|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Validation:
        text = str(value)
        if text == NONE:
            return Validation()
        if text.isdecimal():
            return Validation(count=int(text))
        if not text.endswith("%"):
            return Validation(path=Path(text))
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is not a percentage above 0% and below 100%", param, ctx)
        return Validation(share=share)


@dataclass(frozen=True)
class SetAside:
    """The images that remain for training, and those that are set aside."""

    training: Collection
    validation: Collection | None = None
    held_out: Collection | None = None


@dataclass(frozen=True)
class TrainingData:
    data: Path
    test_data: tuple[Path, ...]
    validation: Validation | None
    hold_out: int
    corrupt: Corrupt
    workers: int | None
    quiet: bool

    def set_aside(self, *, validates: bool) -> SetAside:
        """The images, divided; `validates`: validation images are wanted if nobody said.

        Raises:
            ValueError: see `models.data.collection.find`; or there are too few images.
        """
        from models.data import source
        from models.data.collection import find

        training, held_out, validation = find(self.data, "train"), None, None
        if self.hold_out:
            held_out, training = source.divided(training, self.hold_out)
        wanted = self.validation or Validation(auto=validates)
        if wanted.auto:
            wanted = self._chosen(len(training))
        if wanted.path:
            validation = find(wanted.path, part_of(wanted.path, "test"))
            validation = validation.relabelled(training.classes)
        elif count := wanted.count or round(wanted.share * len(training)):
            validation, training = _stratified(training, count)
        return SetAside(training, validation, held_out)

    def _chosen(self, images: int) -> Validation:
        """What validates if nobody said: the set's own part, or a share of so many images."""
        if part := _own_part(self.data):
            return Validation(path=part)
        if images < FEWEST:
            if not self.quiet:
                click.echo(
                    f"{images} images are too few to set any aside for validation; "
                    "the last epoch is kept, and its accuracy is not known",
                    err=True,
                )
            return Validation()
        return Validation(count=min(MOST, round(SHARE * images)))

    def tests(self, spec: InputSpec, classes: tuple[str, ...]) -> tuple[Dataset, ...]:
        """The test sets, with targets among the classes of training."""
        own = part_of(self.data, "test") and not self._validates_on_its_test()
        paths = self.test_data or ([self.data] if own else [])
        read = [read_dataset(path, spec, self.corrupt, quiet=self.quiet) for path in paths]
        return tuple(each.relabelled(classes) for each in read)

    def _validates_on_its_test(self) -> bool:
        """Whether the part that would be the test is the validation set."""
        part = _own_part(self.data)
        return self.validation is None and part is not None and not (part.parent / "test").is_dir()

    def read(self, collection: Collection | None, spec: InputSpec, name: str) -> Dataset | None:
        """The images of a collection, in memory, as a set of this name."""
        from models.data import datasets

        if collection is None:
            return None
        data = datasets.decode(collection, spec, corrupt=self.corrupt)
        return replace(data, source=name.format(len(data.images), collection.path.name))

    def open(self, training: Collection, spec: InputSpec, recipe: Recipe, world: World) -> Source:
        """What a recipe trains on.

        Raises:
            ValueError: see `models.data.source.open_source`.
        """
        from models.data import source
        from models.data.loading import Loading
        from models.training.run import augmentation
        from service.runtime import cpus

        hidden = self.quiet or not world.leads
        with bar(hidden=hidden, desc=self.data.name, unit=" images") as shown:
            return source.open_source(
                training,
                spec,
                world.device,
                augmentation=augmentation(recipe, spec),
                loading=Loading(
                    corrupt=self.corrupt,
                    workers=cpus() if self.workers is None else self.workers,
                    resident=None if recipe.crops == "padded" else False,
                    report=shown.write,
                    progress=lambda count: shown.update(count - shown.n),
                ),
            )


def _own_part(data: Path) -> Path | None:
    """The folder of a set's own validation images."""
    found = (data / name for name in ("val", "validation") if (data / name).is_dir())
    return next(found, None)


def _stratified(training: Collection, count: int) -> tuple[Collection, Collection]:
    from models.data.stratified import stratified

    if not training.exclusive:
        raise ValueError(f"{training.path}: some of its images have several labels or none")
    if count >= len(training):
        raise ValueError(f"--validation: {training.path} has {len(training)} images; set aside fewer")
    chosen, others = stratified(training.targets, count)
    return training.part(chosen), training.part(others)
