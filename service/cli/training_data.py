"""The images of `train`: what it trains on, and what it sets aside from that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.training.recipe import Recipe
from service.cli import preparation
from service.cli.options import PATH, decode, part_of
from service.cli.progress import bar
from service.cli.training_output import Teller

if TYPE_CHECKING:
    from models.data.collection import Collection
    from models.data.datasets import Corrupt
    from models.data.listing import Split
    from models.data.source import Source
    from models.preprocess import InputSpec
    from models.training.parallel import World

NONE = "none"
SHARE = 0.2
# Of the images, for a validation set that nobody asked for: fewer tell nothing, and more are read
# into memory for little.
FEWEST, MOST = 40, 25_000


@dataclass(frozen=True)
class Validation:
    """Where validation images come from: a `share` of the training images, a `count` of them, or
    another `path`; none if all are empty."""

    share: float = 0.0
    count: int = 0
    path: Path | None = None


NOTHING = Validation()


class ValidationParameter(click.ParamType[Validation]):
    """A percentage or a number of the training images, another set's path, or none."""

    name = "20%|N|PATH|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Validation:
        text = str(value)
        if text == NONE:
            return NOTHING
        if text.isdecimal():
            return Validation(count=int(text))
        if not text.endswith("%"):
            path = PATH.convert(text, param, ctx)
            if _is_number(text) and not path.exists():
                self.fail(f"{value!r} is no number of images; a share is written 20%", param, ctx)
            return Validation(path=path)
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is not a percentage above 0% and below 100%", param, ctx)
        return Validation(share=share)


@dataclass(frozen=True)
class Sets:
    """The images that remain for training, and those that are set aside. `tests`: the sets to
    test on."""

    training: Collection
    validation: Collection | None = None
    held_out: Collection | None = None
    tests: tuple[Collection, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    data: Path
    test_data: tuple[Path, ...]
    validation: Validation | None
    hold_out: int
    corrupt: Corrupt
    workers: int | None
    quiet: bool

    @property
    def processes(self) -> int:
        """The number of those that decode images."""
        from service.runtime import cpus

        return cpus() if self.workers is None else self.workers

    def sets(self, *, validates: bool, teller: Teller) -> Sets:
        """The images, divided; `validates`: validation images are wanted if nobody said.

        Raises:
            ValueError: see `models.data.collection.find`; there are too few images; or a set has
                classes that the training images do not have.
        """
        from models.data import splitting
        from models.data.advice import check
        from models.data.collection import find, has_split

        training, held_out, validation = find(self.data, "train"), None, None
        check(training)
        if self.hold_out:
            training, held_out = splitting.split(training, self.hold_out)
        wanted = self.validation or (self._usual(len(training), teller) if validates else NOTHING)
        if wanted.path:
            names: tuple[Split, ...] = ("validation", "test")
            named = next((name for name in names if has_split(wanted.path, name)), None)
            if self._trains_on(wanted.path, named):
                raise ValueError(
                    f"--validation {wanted.path}: these images are trained on; --validation 20% "
                    "sets some of them aside"
                )
            validation = find(wanted.path, named)
        elif part := wanted.count or wanted.share:
            training, validation = splitting.split(training, part)
        own = part_of(self.data, "test")
        if own and not has_split(self.data, "test"):  # Its own validation images would be the test.
            own = None if wanted.path == self.data else own
        parts = [(path, part_of(path, "test")) for path in self.test_data]
        for path in (path for path, named in parts if self._trains_on(path, named)):
            teller.warn(f"{path} is trained on: accuracy on it is not that on other images")
        tests = [find(path, named) for path, named in parts]
        if own and not tests:
            tests = self._own_tests(own, teller)
        return Sets(
            training,
            _aligned(validation, training, "validation") if validation else None,
            held_out,
            tuple(_aligned(test, training, "test") for test in tests),
        )

    def _trains_on(self, path: Path, part: Split | None) -> bool:
        return part is None and path.resolve() == self.data.resolve()

    def _own_tests(self, own: Split, teller: Teller) -> list[Collection]:
        """The set's own test images, if they have classes: those of a competition have none."""
        from models.data.collection import find

        try:
            return [find(self.data, own)]
        except ValueError as error:
            teller.warn(f"its own test images are not measured: {error}")
            return []

    def _usual(self, images: int, teller: Teller) -> Validation:
        """What validates if nobody said: the set's own part, or a share of so many images."""
        from models.data.collection import has_split

        if has_split(self.data, "validation"):
            return Validation(path=self.data)
        if images < FEWEST:
            teller.warn(
                f"{self.data.name}: {images} images are too few to set any aside for validation: "
                "the last epoch is kept, and its accuracy is not known"
            )
            return NOTHING
        return Validation(share=SHARE) if SHARE * images <= MOST else Validation(count=MOST)

    def advise(self, sets: Sets, spec: InputSpec, teller: Teller) -> None:
        """Says what may be wrong with the images.

        Raises:
            ValueError: nothing can be learnt from them.
        """
        from models.data.advice import advice

        others = (*sets.tests, *filter(None, [sets.validation]))
        for line in advice(sets.training, spec, others):
            teller.warn(line)

    def measured(
        self, spec: InputSpec, prepared: dict[str, Any], training: Collection
    ) -> InputSpec:
        """With the mean and standard deviation of the training images, where these are asked
        for."""
        wanted = [name for name in ("mean", "std") if prepared[name] == preparation.AUTO]
        if not wanted:
            return spec
        from models.data.statistics import statistics

        mean, std = statistics(training, spec, corrupt=self.corrupt, workers=self.processes)
        return replace(
            spec,
            mean=mean if "mean" in wanted else spec.mean,
            std=std if "std" in wanted else spec.std,
        )

    def read(self, collection: Collection | None, spec: InputSpec, name: str = "{1}") -> Any:
        """The images of a collection, in memory, as a set of this name; None for none."""
        if collection is None:
            return None
        data = decode(collection, spec, self.corrupt, quiet=self.quiet)
        return replace(data, source=name.format(len(data.images), collection.path.name))

    def open(self, training: Collection, spec: InputSpec, recipe: Recipe, world: World) -> Source:
        """What a recipe trains on.

        Raises:
            ValueError: see `models.data.source.source_of`.
        """
        from models.data.loading import Loading
        from models.data.source import source_of
        from models.training.plan import augmentation

        hidden = self.quiet or not world.leads
        with bar(hidden=hidden, desc=self.data.name, unit=" images") as shown:
            loading = Loading(
                corrupt=self.corrupt,
                workers=self.processes,
                report=Teller(hidden=hidden).warn,
                progress=lambda count: shown.update(count - shown.n),
            )
            return source_of(training, spec, world.device, augmentation(recipe, spec), loading)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _aligned(other: Collection, training: Collection, use: str) -> Collection:
    """Another set with the classes of the training images.

    Raises:
        ValueError: it has others.
    """
    return other.relabelled(training.classes, "the training images'", use)
