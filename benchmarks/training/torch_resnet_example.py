"""torch-resnet's example, for as many steps as one likes.

https://github.com/raphaelreme/torch-resnet, example/example.py: PIL images in a `DataLoader` with
worker processes, torchvision's transforms, SGD with a scheduler that steps with every batch, and
deep-trainer's `PytorchTrainer` with its metrics and its TensorBoard log. Left off are the test
after each epoch, and deterministic algorithms, which would only slow it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.common.stopwatch import Enough
from benchmarks.common.vision import import_torchvision
from models.data.datasets import Dataset

WORKERS = 8
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Photographs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Arrays that become PIL images one by one, as torchvision's CIFAR-10 does it."""

    def __init__(self, data: Dataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels: NDArray[np.uint8] = data.images
        self.targets: list[int] = data.targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def loader(
    data: Dataset, batch_size: int, workers: int = WORKERS
) -> torch.utils.data.DataLoader[tuple[Tensor, int]]:
    """Batches of float32 [N, 3, 32, 32] and int64 [N]."""
    transforms = import_torchvision().transforms
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.utils.data.DataLoader(
        Photographs(data, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def optimizer(network: nn.Module) -> torch.optim.SGD:
    """Weight decay on the weights of convolutions and linear layers alone."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    decayed = {layer.weight for layer in layers}
    others = [parameter for parameter in network.parameters() if parameter not in decayed]
    groups = [
        {"params": others, "weight_decay": 0.0},
        {"params": list(decayed), "weight_decay": 1e-4},
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def schedule(step: int) -> float:
    """The learning rate's factor (He 2015, section 4.2, 110 layers)."""
    if step <= 400:
        return 0.1
    return 1.0 if step <= 32_000 else 0.1 if step <= 48_000 else 0.01


def train(
    data: Dataset,
    *,
    steps: int,
    batch_size: int,
    device: str,
    mixed: bool,
    lap: Callable[[int], None],
    workers: int = WORKERS,
) -> nn.Module:
    """The ResNet-20 after so many steps, or as it is when `lap` raises `Enough`.

    `lap` is told the number of steps that are done. `mixed`: mixed precision.
    """
    import deep_trainer
    import deep_trainer.metric
    import torch_resnet

    network: Any = torch_resnet.ResNet20(small_images=True)  # type: ignore[no-untyped-call]
    network.set_head(nn.Linear(network.out_planes, 10))
    criterion = nn.CrossEntropyLoss()
    metrics = deep_trainer.metric.MetricsHandler(
        [
            deep_trainer.metric.Accuracy(),
            deep_trainer.metric.PytorchMetric(criterion, "Loss", False, True),
        ]
    )
    metrics.set_validation_metric(0)
    sgd = optimizer(network)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        trainer = deep_trainer.PytorchTrainer(
            network,
            sgd,
            torch.optim.lr_scheduler.LambdaLR(sgd, schedule),
            metrics,
            torch.device(device),
            output_dir=folder,
            use_amp=mixed,
        )
        step = trainer.train_step

        def timed(*batch: Any) -> Any:
            # Before a step, when the one before it has been logged too.
            lap(trainer.train_steps)
            return step(*batch)

        trainer.train_step = timed
        with suppress(Enough):
            trainer.train(1, loader(data, batch_size, workers), criterion, epoch_size=steps)
        trainer.logger.tensorboard_writer.close()
    trained: nn.Module = network
    return trained
