"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier import Normalise
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.training.augment import crop_and_flip
from models.training.datasets import Dataset
from models.training.recipes import Recipe


class Diverged(ArithmeticError):
    """The loss is no longer finite; the message names the step."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after a step: mean loss and accuracy of the epoch so far."""

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float
    images_per_second: float


def train(
    network: ResNet,
    data: Dataset,
    spec: InputSpec,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    compiled: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Trains `network` in place; equal seeds give equal weights on the same machine.

    `compiled` runs the step through `torch.compile`, and falls back to eager mode where no
    compiler works.

    Raises:
        Diverged: the loss became infinite or not a number.
    """
    generator = torch.Generator(device).manual_seed(seed)
    images = torch.from_numpy(data.images).to(device)
    targets = torch.from_numpy(data.targets).to(device)
    network.to(device).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normalise(spec).to(device)
    optimizer = _optimizer(network, recipe)
    if len(images) < recipe.batch_size:
        raise ValueError(
            f"{data.source}: {len(images)} images are not one batch of {recipe.batch_size}"
        )
    torch.manual_seed(seed)  # Dropout draws from the global generator.
    steps = recipe.epochs * (len(images) // recipe.batch_size)

    def forward(batch: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(normalise(batch))
        return F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing), logits

    step_forward = torch.compile(forward) if compiled and _can_compile(device) else forward
    step, epoch = 0, -1
    for order in _epochs(len(images), recipe, generator):
        epoch, started = epoch + 1, time.perf_counter()
        loss_sum, right, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for chosen in order:
            batch = crop_and_flip(images[chosen], recipe.crop_padding, generator)
            target = targets[chosen]
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step / steps, recipe.warm_up)
            loss, logits = step_forward(batch, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step, seen = step + 1, seen + len(chosen)
            loss_sum += loss.detach() * len(chosen)
            right += (logits.detach().argmax(1) == target).sum()
            if step % 20 == 0 or seen == len(order) * recipe.batch_size:
                if not math.isfinite(float(loss_sum)):
                    raise Diverged(
                        f"the loss is not finite at step {step}; lower the learning rate"
                    )
                seconds = time.perf_counter() - started
                report(
                    Progress(
                        step,
                        steps,
                        epoch,
                        float(loss_sum) / seen,
                        float(right) / seen,
                        seen / seconds,
                    )
                )
    network.eval()


def schedule(done: float, warm_up: float) -> float:
    """The learning rate's factor when the fraction `done` of all steps is done."""
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _epochs(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Per epoch, the image indices of each batch; an incomplete last batch is left out."""
    for _ in range(recipe.epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        whole = count - count % recipe.batch_size
        yield list(torch.split(order[:whole], recipe.batch_size))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = {layer.weight for layer in layers}
    others = [parameter for parameter in network.parameters() if parameter not in weights]
    return torch.optim.SGD(
        [
            {"params": list(weights), "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )


def _can_compile(device: str) -> bool:
    """Whether `torch.compile` works here: on a CPU it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception:  # noqa: BLE001  (whatever the compiler says, eager mode works)
        return False
    return True
