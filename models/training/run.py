"""One training run from data to bundle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import bundling, hardware
from models.bundle import Bundle
from models.classifier import Classifier
from models.data.datasets import Dataset
from models.evaluation import temperature
from models.evaluation.confusion import summary
from models.evaluation.evaluate import Evaluation, batches, evaluate, inference
from models.resnet import ResNet
from models.storage import rounded
from models.training import recipes
from models.training.checkpoint import Checkpoint
from models.training.history import Epoch, History
from models.training.keeping import Outcome, Validation
from models.training.loop import DEFAULT, Options, Progress, precision, train
from models.training.parallel import ALONE, World
from models.training.plan import Plan

STATE = "state.pt"


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
    # Where nothing better can be fitted, that of the start, if the head is the start's.
    own = plan.start.temperature if plan.start and plan.continues else 1.0
    classifier = plan.classifier(network, own).to(world.device)
    found = _calibrate(classifier, plan)
    metrics = {}
    for data in (*plan.tests, plan.validation):
        if data:
            measured = _measure(classifier, data)
            by_class = summary(measured.confusion, plan.source.classes)
            metrics[data.source] = _figures(measured) | by_class
    if plan.validation:
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
        return Validation(measured.top1, measured.nll, measured.images)

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
