"""One training run from data to bundle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from models import bundling, hardware, own_code, variants
from models.architecture import Architecture
from models.blocks import BlockFactory
from models.bundle import Bundle
from models.classifier import Classifier
from models.data.augment import Augmentation, grey
from models.data.datasets import Dataset
from models.data.seeds import mix
from models.data.source import Source
from models.evaluation import temperature
from models.evaluation.confusion import summary
from models.evaluation.evaluate import Evaluation, batches, evaluate, inference
from models.own_code import OwnCode
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.storage import Storage, rounded
from models.training import recipes
from models.training.checkpoint import Checkpoint
from models.training.history import Epoch, History
from models.training.keeping import Outcome, Validation
from models.training.loop import DEFAULT, Options, Progress, precision, train
from models.training.parallel import ALONE, World
from models.training.recipes import Recipe
from models.training.start import load_start
from models.training.stem import whiten_stem
from models.views import Views

STATE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the weights.

    `variant`, `overrides`: the network, and the fields of `Architecture` that differ from it.
    `block`: replaces the blocks of the variant; see `models.own_code`.
    `start`: initial weights, whose network and input replace those of the variant. If the data
        has other classes, the head starts at random.
    `recipe_name`: the name of the recipe that `recipe` is based on.
    `prepared`: how images are prepared, if not as for the variant or the start. Other channels than
        the start's change its stem, see `models.training.start`.
    `tests`: the test sets of the result; the first also measures each epoch.
    `validation`: images that training does not see, which measure each epoch and decide what the
        recipe keeps.
    `held_out`: images that training does not see, to fit the temperature on, instead of the
        validation images.
    `views`, `storage`: those of the bundle; they do not change the training. What is measured is
        what the bundle answers: with its views, and in the end with its weights as rounded.

    Sets may lack some of the source's classes, and are aligned with these by name.
    """

    variant: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    block: BlockFactory | None = None
    start: Bundle | None = None
    source: Source
    recipe: Recipe
    recipe_name: str
    seed: int
    prepared: InputSpec | None = None
    tests: tuple[Dataset, ...] = ()
    validation: Dataset | None = None
    held_out: Dataset | None = None
    views: Views = "plain"
    storage: Storage = "fp32"

    def __post_init__(self) -> None:
        def aligned(other: Dataset) -> Dataset:
            classes = self.source.classes
            return other if other.classes == classes else other.relabelled(classes)

        object.__setattr__(self, "tests", tuple(map(aligned, self.tests)))
        if self.validation:
            object.__setattr__(self, "validation", aligned(self.validation))

    def architecture(self) -> Architecture:
        """The network's architecture; `overrides` take precedence over the recipe.

        Raises:
            ValueError: the variant or an override is unknown or invalid, a test set has other
                classes or the name of another test set, too few images are held out, the recipe
                needs validation images and there are none, or the source does not augment its
                images as the recipe says.
        """
        for other in filter(None, (*self.tests, self.validation, self.held_out)):
            if other.classes != self.source.classes:
                raise ValueError(f"{other.source} has other classes than {self.source.source}")
            if other.targets.ndim != 1:
                raise ValueError(f"{other.source} has images with several labels or none")
        if self.held_out:
            temperature.check_count(len(self.held_out.images), ", or hold out none")
        self._check_source()
        if self.validation is None and (self.recipe.keep == "best" or self.recipe.patience):
            what = "keep best" if self.recipe.keep == "best" else "patience"
            raise ValueError(f"{what} needs validation images")
        sources = [test.source for test in filter(None, (*self.tests, self.validation))]
        if len(set(sources)) < len(sources):
            raise ValueError(f"two test sets are called {sources[0]}; rename one")
        base = self.start or variants.variant(self.variant)
        own: dict[str, Any] = {"dropout": self.recipe.dropout}
        if self.start is None:  # Weights keep the shortcuts and strides they were trained with.
            own["shortcut"] = self.recipe.shortcut
            if self.overrides.get("block", base.architecture.block) == "bottleneck":
                own["stride_at"] = self.recipe.stride_at
        changes = {name: value for name, value in own.items() if value is not None}
        return variants.override(
            base.architecture,
            **{
                "num_classes": len(self.source.classes),
                **({"in_channels": self.prepared.shape[2]} if self.prepared else {}),
                **changes,
                **self.overrides,
            },
        )

    def _check_source(self) -> None:
        for name, value in self.source.applied.items():
            if name == "balance" and (self.recipe.balance, value) == ("loss", "none"):
                continue  # Then the images are drawn as ever.
            if (wanted := getattr(self.recipe, name)) != value:
                raise ValueError(
                    f"{self.source.source}: the recipe's {name} is {wanted!r}, but its images get "
                    f"{value!r}; open it with augmentation=augmentation(recipe, spec)"
                )

    def record(self) -> dict[str, Any]:
        """What is done of the recipe, as JSON values: with the network's dropout, shortcut and
        stride, if the recipe has its own. Basic blocks have no choice where to stride."""
        architecture = self.architecture()
        own: dict[str, Any] = {
            name: getattr(architecture, name)
            for name in ("dropout", "shortcut", "stride_at")
            if getattr(self.recipe, name) is not None
        }
        if self.start is not None:  # Weights are not initialised.
            own |= {"stem_init": "he", "zero_init_residual": False}
        if architecture.block == "basic":
            own["stride_at"] = None
        return replace(self.recipe, **own).record()

    @property
    def input(self) -> InputSpec:
        """The network's input specification; without a start, normalised as the recipe says."""
        if self.prepared or self.start:
            return self.prepared or cast("Bundle", self.start).input
        spec, recipe = variants.variant(self.variant).input, self.recipe
        return replace(spec, mean=recipe.mean or spec.mean, std=recipe.std or spec.std)

    @property
    def continues(self) -> bool:
        """Whether the start answers with the classes of the data."""
        return self.start is not None and self.start.labels == self.source.classes

    def network(self) -> ResNet:
        """The network as training begins.

        Raises:
            ValueError: see `architecture`; or the initial weights do not fit the `overrides`.
        """
        torch.manual_seed(mix("initialise", self.seed))
        recipe = self.recipe
        code = self.start.code if self.start else OwnCode(block=self.block)
        network = ResNet(
            self.architecture(),
            block=code.block,
            head=code.head,
            zero_init_residual=recipe.zero_init_residual,
        )
        if self.start is None and recipe.stem_init == "whitened":
            whiten_stem(network, self.source, self.input, seed=self.seed)
        if self.start is not None:
            load_start(network, self.start, self.source.classes, self.input.channels)
        return network

    def classifier(self, network: ResNet, temperature: float = 1.0) -> Classifier:
        """The network as it is measured and served."""
        return Classifier(network, self.input, temperature, views=self.views)

    def identity(self) -> dict[str, Any]:
        """What a run and a saved state must share for the run to resume from it."""
        return {
            "network": asdict(self.architecture()),
            "data": f"{self.source.source}: {len(self.source)} images",
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            **({"block": own_code.path_of(self.block, "block")} if self.block else {}),
            **({"start": self.start.fingerprint()} if self.start else {}),
            **({"input": asdict(self.prepared)} if self.prepared else {}),
            **({"validation": _named(self.validation)} if self.validation else {}),
        }


def augmentation(recipe: Recipe, spec: InputSpec) -> Augmentation:
    """The augmentation of a recipe, for `models.data.source.open_source`."""
    names = {field.name for field in fields(Augmentation)} - {"fill"}
    return Augmentation(fill=grey(spec), **{name: getattr(recipe, name) for name in names})


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
    seed, data, versions, hardware and time; the epoch that is kept; and the temperature's interval,
    or why there is none. On validation images, the start with its own head counts as epoch 0.

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
    before = log.validated(network) if plan.continues and plan.validation else None
    outcome = train(
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
        start=before,
    )
    world.wait()  # For the first process, which still evaluates its last epoch.
    network.load_state_dict(rounded(network.state_dict(), plan.storage))
    # The start, where it is kept, keeps its temperature.
    own = plan.start.temperature if plan.start and plan.continues and not outcome.epoch else 1.0
    classifier = plan.classifier(network, own).to(world.device)
    found = _calibrate(classifier, plan)
    metrics = {}
    for test in plan.tests:
        metrics[test.source] = _figures(_measure(classifier, test))
    if plan.validation:
        measured = _measure(classifier, plan.validation)
        metrics[plan.validation.source] = _figures(measured) | summary(
            measured.confusion, plan.source.classes
        )
        found["kept"] = _kept(outcome)
    return bundling.from_network(
        network.cpu(),
        name=name,
        input=spec,
        labels=plan.source.classes,
        temperature=classifier.temperature,
        views=plan.views,
        storage=plan.storage,
        card=card,
        provenance=_provenance(plan, log.rows, world, options) | found,
        metrics=metrics,
    )


def _calibrate(classifier: Classifier, plan: Plan) -> dict[str, Any]:
    """Sets the temperature to one fitted on the images for it, and returns the record of that."""
    data = plan.held_out or plan.validation
    if data is None:
        return {}
    # The validation images may have chosen the epoch, too.
    record: dict[str, Any] = {} if plan.held_out else {"on": "the validation images"}
    try:
        fitted = _fit(classifier, data)
    except temperature.Undetermined as reason:  # The training was not in vain.
        record |= {"images": len(data.images), "undetermined": str(reason)}
        return {"calibration": record}
    classifier.temperature = fitted.temperature
    return {"calibration": asdict(fitted) | record}


def _figures(measured: Evaluation) -> dict[str, Any]:
    names = ("top1", "top5", "images", "nll", "ece")
    return {name: getattr(measured, name) for name in names}


def _kept(outcome: Outcome) -> dict[str, Any]:
    """The epoch that the bundle is of, as JSON values; 0 is the start."""
    accuracy = outcome.validation.accuracy if outcome.validation else None
    return {
        "epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "validation_top1": accuracy,
        "stopped_early": outcome.stopped_early,
    }


def _named(data: Dataset) -> str:
    return f"{data.source}: {len(data.images)} images"


def _measure(classifier: Classifier, data: Dataset) -> Evaluation:
    return evaluate(inference(classifier), batches(data, 256))


def _fit(classifier: Classifier, data: Dataset) -> temperature.Fitted:
    answers: list[NDArray[np.float32]] = []
    evaluate(
        inference(classifier),
        batches(data, 256),
        observe=lambda probabilities, targets: answers.append(probabilities),
    )
    return temperature.calibrate(np.concatenate(answers), data.targets, classifier.temperature)


def _provenance(
    plan: Plan, rows: Sequence[Epoch], world: World, options: Options
) -> dict[str, Any]:
    seconds = sum(row.seconds for row in rows)
    speeds = [row.images_per_second for row in rows]
    held_out = f", {len(plan.held_out.images)} held out" if plan.held_out else ""
    if plan.validation:
        held_out += f", {len(plan.validation.images)} for validation"
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

    def validated(self, network: ResNet) -> Validation | None:
        """What the network achieves on the validation images, if there are any."""
        if not self.plan.validation or not self.world.leads:
            return None
        measured = self._measured(network, self.plan.validation)
        return Validation(measured.top1, measured.nll)

    def _measured(self, network: ResNet, data: Dataset) -> Evaluation:
        return _measure(self.plan.classifier(network.eval()).to(self.world.device), data)

    def append(self, progress: Progress, network: ResNet) -> Validation | None:
        if not self.world.leads:
            return None
        measured = self._measured(network, self.plan.tests[0]) if self.plan.tests else None
        validated = self.validated(network)
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
            validation_loss=validated.loss if validated else None,
            validation_top1=validated.accuracy if validated else None,
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
        return validated
