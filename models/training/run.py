"""One training run from data to bundle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import bundle, hardware, own_code, variants
from models.architecture import Architecture
from models.bundle import Bundle
from models.classifier import Classifier
from models.data.augment import Augmentation, grey
from models.data.datasets import Dataset
from models.data.seeds import mix
from models.data.source import Source, check_trainable
from models.evaluation import temperature
from models.evaluation.evaluate import Evaluation, batches, evaluate, inference
from models.own_code import OwnCode
from models.preprocess import InputSpec
from models.resnet import BlockFactory, ResNet
from models.training import recipes
from models.training.checkpoint import Checkpoint
from models.training.history import Epoch, History
from models.training.loop import DEFAULT, Options, Progress, precision, train
from models.training.parallel import ALONE, World
from models.training.recipes import Recipe

STATE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the weights.

    `variant`, `overrides`: the network, and the fields of `Architecture` that differ from it.
    `block`: replaces the blocks of the variant; see `models.own_code`.
    `start`: initial weights, whose network and input replace those of the variant. If the data
        has other classes, the head starts at random.
    `recipe_name`: the name of the recipe that `recipe` is based on.
    `tests`: the test sets of the result; the first also measures each epoch.
    `held_out`: images that training does not see, to fit the temperature on.
    """

    variant: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    block: BlockFactory | None = None
    start: Bundle | None = None
    source: Source
    recipe: Recipe
    recipe_name: str
    seed: int
    tests: tuple[Dataset, ...] = ()
    held_out: Dataset | None = None

    def architecture(self) -> Architecture:
        """The network's architecture; `overrides` take precedence over the recipe.

        Raises:
            ValueError: the variant or an override is unknown or invalid, a test set has other
                classes or the name of another test set, too few images are held out, or the source
                does not augment its images as the recipe says.
        """
        for other in (*self.tests, *([self.held_out] if self.held_out else [])):
            if other.classes != self.source.classes:
                raise ValueError(f"{other.source} has other classes than {self.source.source}")
            if other.targets.ndim != 1:
                raise ValueError(f"{other.source} has images with several labels or none")
        if self.held_out:
            temperature.check_count(len(self.held_out.images), ", or hold out none")
        self._check_source()
        sources = [test.source for test in self.tests]
        if len(set(sources)) < len(sources):
            raise ValueError(f"two test sets are called {sources[0]}; rename one")
        own: dict[str, Any] = {"dropout": self.recipe.dropout}
        if self.start is None:  # Weights keep the shortcuts that they were trained with.
            own["shortcut"] = self.recipe.shortcut
        changes = {name: value for name, value in own.items() if value is not None}
        base = self.start or variants.variant(self.variant)
        return variants.override(
            base.architecture,
            **{"num_classes": len(self.source.classes), **changes, **self.overrides},
        )

    def _check_source(self) -> None:
        for name, value in self.source.applied.items():
            if (wanted := getattr(self.recipe, name)) != value:
                remedy = (
                    f"train with replace(recipe, crops={value!r})"
                    if name == "crops"
                    else "open it with augmentation=augmentation(recipe, spec)"
                )
                raise ValueError(
                    f"{self.source.source}: the recipe's {name} is {wanted!r}, but its images get "
                    f"{value!r}; {remedy}"
                )

    def record(self) -> dict[str, Any]:
        """What is done of the recipe, as JSON values: with the network's dropout and shortcut, if
        the recipe has its own."""
        architecture = self.architecture()
        own = {
            name: getattr(architecture, name)
            for name in ("dropout", "shortcut")
            if getattr(self.recipe, name) is not None
        }
        return replace(self.recipe, **own).record()

    @property
    def input(self) -> InputSpec:
        """The network's input specification."""
        return (self.start or variants.variant(self.variant)).input

    def network(self) -> ResNet:
        """The network as training begins.

        Raises:
            ValueError: see `architecture`; or the initial weights do not fit the `overrides`.
        """
        torch.manual_seed(mix("initialise", self.seed))
        code = self.start.code if self.start else OwnCode(block=self.block)
        network = ResNet(self.architecture(), block=code.block, head=code.head)
        if self.start is not None:
            tensors = dict(self.start.tensors)
            if self.start.labels != self.source.classes:
                own = network.state_dict()
                tensors |= {name: own[name] for name in own if name.startswith("head.")}
            bundle.check_fit(network, tensors, "the network to train")
            network.load_state_dict(tensors)
        return network

    def identity(self) -> dict[str, Any]:
        """What a run and a saved state must share for the run to resume from it."""
        return {
            "network": asdict(self.architecture()),
            "data": f"{self.source.source}: {len(self.source)} images",
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            **({"block": own_code.path_of(self.block, "block")} if self.block else {}),
            **({"start": self.start.fingerprint()} if self.start else {}),
        }


def augmentation(recipe: Recipe, spec: InputSpec) -> Augmentation:
    """The augmentation of a recipe, for `models.data.source.open_source`.

    Raises:
        ValueError: training takes no such images, see `models.data.source.check_trainable`.
    """
    check_trainable(spec)  # Its colours are three.
    return Augmentation(
        crop_padding=recipe.crop_padding,
        padding_mode=recipe.padding_mode,
        alternate_flip=recipe.alternate_flip,
        cutout=recipe.cutout,
        cutout_fill=grey(spec),
    )


def train_bundle(
    plan: Plan,
    *,
    name: str,
    folder: Path | None = None,
    card: str = "",
    world: World = ALONE,
    options: Options = DEFAULT,
    report: Callable[[Progress], None] = lambda progress: None,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Bundle:
    """A trained bundle, evaluated in float32 on `plan.tests`.

    `folder` gets the run's log, and after each epoch its state, from which an equal plan resumes:
    the file `STATE`, useless once the bundle is written. The bundle's provenance records recipe,
    seed, data, versions, hardware and time; and the temperature's interval, or why there is none.

    Raises:
        ValueError: see `Plan.architecture`; or the name or the card is invalid.
        CannotResume, Diverged: see `train`.
    """
    spec = plan.input
    network = plan.network()
    # Refuse what a bundle cannot hold now, not after the training.
    Bundle(
        name=name,
        architecture=network.architecture,
        input=spec,
        labels=plan.source.classes,
        tensors={},
        card=card,
    )
    log = _Log(folder, plan, world, after_epoch)
    checkpoint = Checkpoint(folder / STATE, plan.identity()) if folder else None
    train(
        network,
        plan.source,
        spec,
        plan.recipe,
        seed=plan.seed,
        world=world,
        options=options,
        checkpoint=checkpoint,
        report=report,
        after_epoch=log.append,
    )
    world.wait()  # For the first process, which still evaluates its last epoch.
    classifier = Classifier(network, spec).to(world.device)
    calibration: dict[str, Any] = {}
    if plan.held_out is not None:
        try:
            fitted = _fit(classifier, plan.held_out)
            classifier = Classifier(network, spec, fitted.temperature).to(world.device)
            calibration["calibration"] = asdict(fitted)
        except temperature.Undetermined as reason:  # The training was not in vain.
            images = len(plan.held_out.images)
            calibration["calibration"] = {"images": images, "undetermined": str(reason)}
    metrics = {}
    for test in plan.tests:
        measured = _measure(classifier, test)
        names = ("top1", "top5", "images", "nll", "ece")
        metrics[test.source] = {name: getattr(measured, name) for name in names}
    return bundle.from_network(
        network.cpu(),
        name=name,
        input=spec,
        labels=plan.source.classes,
        temperature=classifier.temperature,
        card=card,
        provenance=_provenance(plan, log.rows, world, options) | calibration,
        metrics=metrics,
    )


def _measure(classifier: Classifier, data: Dataset) -> Evaluation:
    return evaluate(inference(classifier), batches(data, 256))


def _fit(classifier: Classifier, data: Dataset) -> temperature.Fitted:
    answers: list[NDArray[np.float32]] = []
    evaluate(
        inference(classifier),
        batches(data, 256),
        observe=lambda probabilities, targets: answers.append(probabilities),
    )
    return temperature.calibrate(np.concatenate(answers), data.targets)


def _provenance(
    plan: Plan, rows: Sequence[Epoch], world: World, options: Options
) -> dict[str, Any]:
    seconds = sum(row.seconds for row in rows)
    speeds = [row.images_per_second for row in rows]
    held_out = f", {len(plan.held_out.images)} held out" if plan.held_out else ""
    return {
        "source": "trained by `resnet-serve train`",
        "data": f"{plan.source.source}: {len(plan.source)} images{held_out}",
        "recipe": {"name": plan.recipe_name, **plan.record()},
        "changed": recipes.by_name(plan.recipe_name).differences(plan.recipe),
        "seed": plan.seed,
        **({"start": _described(plan.start)} if plan.start else {}),
        "seconds": round(seconds),
        "images_per_second": round(statistics.median(speeds)) if speeds else None,
        "precision": precision(options, world.device),
        "processes": world.size,
        **({"accumulate": options.accumulate} if options.accumulate > 1 else {}),
        **({"local_norm": True} if world.size > 1 and not options.global_norm else {}),
        "hardware": hardware.name(world.device),
        "device": world.device,
        "torch": torch.__version__,
    }


def _described(start: Bundle) -> dict[str, Any]:
    return {
        "name": start.name,
        "fingerprint": start.fingerprint(),
        "provenance": start.provenance,
    }


class _Log:
    """A row for each epoch, including those before the run was resumed."""

    def __init__(
        self, folder: Path | None, plan: Plan, world: World, tell: Callable[[Epoch], None]
    ) -> None:
        self.history = History(folder) if folder and world.leads else None
        self.rows = list(self.history.rows) if self.history else []
        self.plan, self.world, self.tell = plan, world, tell
        self.began = time.perf_counter()

    def append(self, progress: Progress, network: ResNet) -> None:
        if not self.world.leads:
            return
        measured = None
        if self.plan.tests:
            classifier = Classifier(network, self.plan.input).to(self.world.device)
            measured = _measure(classifier, self.plan.tests[0])
        row = Epoch(
            epoch=progress.epoch + 1,
            step=progress.step,
            learning_rate=progress.learning_rate,
            loss=progress.loss,
            accuracy=progress.accuracy,
            test_loss=measured.nll if measured else None,
            test_top1=measured.top1 if measured else None,
            test_top5=measured.top5 if measured else None,
            images_per_second=progress.images_per_second,
            seconds=time.perf_counter() - self.began,
        )
        self.began = time.perf_counter()
        # A killed run may have logged an epoch without saving its state.
        kept = [earlier for earlier in self.rows if earlier.step < row.step]
        if self.history:
            if len(kept) < len(self.rows):
                self.history.truncate(row.step - 1)
            self.history.append(row)
        self.rows = [*kept, row]
        self.tell(row)
