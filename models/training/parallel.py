"""Training in several processes started by `torchrun`, with the result of a single one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class World:
    """This process among those training together: number `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits until all processes get here."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, "cpu")


@contextmanager
def join(device: str, cpus: int | None = None) -> Iterator[World]:
    """The processes that `torchrun` started together, or this one alone.

    `device`: "cpu", "cuda:N", or "auto" for a GPU if there is one. Each process on a machine gets
    its own GPU. `cpus`: limit of torch's threads; torch does not know about CPU quotas.

    Raises:
        ValueError: there is no such GPU, or no GPU for this process.
    """
    if cpus is not None and cpus < torch.get_num_threads():
        torch.set_num_threads(cpus)
    count = torch.cuda.device_count()
    if device == "auto":
        device = "cuda:0" if count else "cpu"
    kind, _, index = device.partition(":")
    if kind != "cpu" and not (kind == "cuda" and int(index or 0) < count):
        raise ValueError(f"device {device}: torch sees {count} GPUs; use auto, cpu or cuda:N")
    if not dist.is_torchelastic_launched():
        yield World(0, 1, device)
        return
    local = dist.get_node_local_rank(0)
    if kind == "cuda":
        if local >= count:
            raise ValueError(f"process {local + 1} has no GPU of its own: torch sees {count}")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class _Mean(torch.autograd.Function):
    """The mean of a tensor over all processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


class GlobalNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the batches of all processes together.

    torch's own version needs a GPU. `batch` is the number of images of all processes; they have
    equally many if it is None.
    """

    batch: int | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        x = input.float()
        mean = _Mean.apply(self._part(x))  # type: ignore[no-untyped-call]
        centred = x - mean[:, None, None]
        variance = _Mean.apply(self._part(centred.square()))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            batch = self.batch or len(x) * dist.get_world_size()
            count = batch * x.shape[2] * x.shape[3]
            share = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1)), share)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        normal: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)

    def _part(self, x: Tensor) -> Tensor:
        """What this process adds to the mean over processes: its own mean, or that by the share of
        the images that it has."""
        if self.batch is None:
            return x.mean((0, 2, 3))
        pixels = self.batch * x.shape[2] * x.shape[3]
        return x.sum((0, 2, 3)) * (dist.get_world_size() / pixels)


@contextmanager
def global_norms(network: nn.Module, world: World) -> Iterator[None]:
    """Makes `network` normalise by the batches of all processes within the context."""
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d] if world.size > 1 else []
    for norm in norms:
        norm.__class__ = GlobalNorm
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


def set_batch(network: nn.Module, batch: int | None) -> None:
    """Tells norms of all processes together that the next batch has `batch` images in all."""
    for norm in network.modules():
        if isinstance(norm, GlobalNorm):
            norm.batch = batch
