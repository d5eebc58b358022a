"""Which epoch's network a training run returns, and when it ends early."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.resnet import ResNet
from models.training.parallel import World
from models.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Validation:
    """A network's top-1 `accuracy`, 0 to 1, and mean `loss` on the validation images.

    `images`: how many; 0 if unknown, which takes the accuracy for exact.
    """

    accuracy: float
    loss: float
    images: int = 0

    @property
    def error(self) -> float:
        """The standard error of `accuracy`."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.images) if self.images else 0.0

    def beats(self, other: Validation) -> bool:
        """Whether this is better: more accurate, or as accurate with a lower loss."""
        if self.accuracy == other.accuracy:
            return self.loss < other.loss
        return self.accuracy > other.accuracy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training returned: the network after `epoch` of the `epochs` trained, counted from 1;
    0 is the start. `stopped_early`: patience ended the run. `validation`: the figures of that
    epoch, if they were measured."""

    epoch: int
    epochs: int
    stopped_early: bool = False
    validation: Validation | None = None


class Keeper:
    """Remembers the best network so far, as `recipe.keep` and `recipe.patience` demand.

    Every process has one, and all decide alike, on the first one's figures.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.keeps_best = recipe.keep == "best"
        self.patience, self.world = recipe.patience, world
        self.epoch = self.best_epoch = 0
        self.latest: Validation | None = None
        self.best: Validation | None = None
        self.tensors: dict[str, Tensor] | None = None

    def offer(self, epoch: int, measured: Validation | None, network: ResNet) -> None:
        """Takes note of the network after an epoch, with what the first process measured of it.

        Raises:
            ValueError: nothing was measured, but the recipe depends on it.
        """
        self.epoch, self.latest = epoch, self._agreed(measured)
        if self.latest is None:
            if self.keeps_best or self.patience:
                what = "keep best" if self.keeps_best else "patience"
                raise ValueError(f"{what} needs validation images")
            return
        if self._improves(self.latest):
            self.best, self.best_epoch = self.latest, epoch
            if self.keeps_best:
                self.tensors = {n: t.detach().clone() for n, t in network.state_dict().items()}

    def _improves(self, latest: Validation) -> bool:
        if self.best is None:
            return True
        if self.best_epoch == 0:
            # The start is known to work, and the best of many epochs is partly luck. So it is
            # replaced for more than one standard error, as Breiman et al. 1984 choose trees.
            return latest.accuracy > self.best.accuracy + self.best.error
        return latest.beats(self.best)

    @property
    def exhausted(self) -> bool:
        """Whether there was no better epoch for as long as patience lasts."""
        return 0 < self.patience <= self.epoch - self.best_epoch

    def outcome(self, *, stopped_early: bool) -> Outcome:
        """What training returns."""
        if self.keeps_best:
            return Outcome(self.best_epoch, self.epoch, stopped_early, self.best)
        return Outcome(self.epoch, self.epoch, stopped_early, self.latest)

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from."""
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "latest": self.latest and asdict(self.latest),
            "best": self.best and asdict(self.best),
            "tensors": self.tensors,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a `state_dict`."""
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.tensors = state["tensors"]
        self.latest, self.best = (
            Validation(**state[name]) if state[name] else None for name in ("latest", "best")
        )

    def _agreed(self, measured: Validation | None) -> Validation | None:
        if self.world.size == 1:
            return measured
        absent = float("-inf")
        figures = list(astuple(measured)) if measured else [absent] * 3
        told = torch.tensor(figures, dtype=torch.float64, device=self.world.device)
        dist.broadcast(told, 0)
        accuracy, loss, images = told.tolist()
        return None if accuracy == absent else Validation(accuracy, loss, int(images))
