"""The training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.classifier import Normalise
from models.data import augment
from models.data.seeds import mix
from models.data.source import Source
from models.hardware import native_precision
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.training.checkpoint import CannotResume, Checkpoint
from models.training.parallel import ALONE, World, global_norms
from models.training.recipes import Recipe

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_FROM = 200  # steps; compiling takes as long as tens of them
REPORT_EVERY = 20  # steps; each report waits for the device


class Diverged(ArithmeticError):
    """The loss is not finite; the message names the step."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress after a step: mean loss and accuracy of the epoch so far, and the images per
    second since this process began the epoch."""

    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a recipe; unlike the recipe, these options should not change the result.

    `precision`: "auto" is the hardware's fastest; master weights and the head stay float32.
    `compiled`: use `torch.compile`, unless no compiler works or the run is too short to benefit.
    `accumulate`: number of parts that each batch is computed in, to save memory; each part is
        normalised by its own statistics.
    `global_norm`: several processes normalise by the statistics of all their batches together,
        for the result of a single process.
    `save_every`: seconds between saves of the state within an epoch.
    `checkpoint_blocks`: see `ResNet.checkpoint_blocks`.
    """

    precision: str = "auto"
    compiled: bool = True
    accumulate: int = 1
    global_norm: bool = True
    save_every: float = 600.0
    checkpoint_blocks: bool = False


DEFAULT = Options()


class _Objective(nn.Module):
    """The loss and the float32 logits [N, K] for pixels [N, H, W, 3] and targets.

    Targets are int64 [N], or probabilities float32 [N, K].
    """

    def __init__(self, network: ResNet, spec: InputSpec, smoothing: float) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.network = network
        self.smoothing = smoothing

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(self.normalise(images))
        with torch.autocast(images.device.type, enabled=False):
            logits = self.network.head(features.float())
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing), logits


def train(
    network: ResNet,
    source: Source,
    spec: InputSpec,
    recipe: Recipe,
    *,
    seed: int,
    world: World = ALONE,
    options: Options = DEFAULT,
    checkpoint: Checkpoint | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    after_epoch: Callable[[Progress, ResNet], None] = lambda progress, network: None,
) -> None:
    """Trains `network` in place, resuming from the checkpoint if it has a state.

    Equal seeds give equal weights on the same machine, even if training is stopped and resumed.
    `after_epoch` gets the network that training would return at that point, in evaluation mode.

    Raises:
        Diverged: the loss is infinite or not a number.
        ValueError: the data are fewer than one batch, or batches cannot be divided.
        CannotResume: the checkpoint's state is damaged or belongs to another run.
    """
    parts = world.size * options.accumulate
    if len(source) < recipe.batch_size:
        raise ValueError(
            f"{source.source}: {len(source)} images are fewer than one batch of {recipe.batch_size}"
        )
    if recipe.batch_size % parts:
        raise ValueError(f"batches of {recipe.batch_size} cannot be divided into {parts} parts")
    if options.checkpoint_blocks:
        network.checkpoint_blocks()
    shared = world if options.global_norm else ALONE
    with global_norms(network, shared), _repeatable():
        _Run(network, source, spec, recipe, seed, world, options, checkpoint).go(
            report, after_epoch
        )
    network.eval()


@contextmanager
def _repeatable() -> Iterator[None]:
    """Avoids cuDNN's non-deterministic convolutions."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


class _Run:
    def __init__(
        self,
        network: ResNet,
        source: Source,
        spec: InputSpec,
        recipe: Recipe,
        seed: int,
        world: World,
        options: Options,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.source, self.recipe, self.seed = source, recipe, seed
        self.world, self.options, self.checkpoint = world, options, checkpoint
        device = torch.device(world.device)
        self.network = network.to(device).train()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = _average(network, recipe.ema) if recipe.ema else None
        self.objective: nn.Module = _Objective(network, spec, recipe.label_smoothing).to(device)
        if world.size > 1:
            ids = [device] if device.type == "cuda" else None
            self.objective = DistributedDataParallel(self.objective, device_ids=ids)
        self.optimizer = _optimizer(network, recipe)
        self.precision = precision(options, world.device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.per_epoch = len(source) // recipe.batch_size
        self.steps = recipe.steps(self.per_epoch)
        self.step = 0
        pays = self.steps >= COMPILE_FROM
        compiled = options.compiled and pays and can_compile(world.device)
        self.forward = torch.compile(self.objective) if compiled else self.objective
        # The epoch's sums of loss and accuracy, and the first step with a loss that is not finite.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.bad = torch.full((), self.steps + 1, device=device)

    def go(
        self,
        report: Callable[[Progress], None],
        after_epoch: Callable[[Progress, ResNet], None],
    ) -> None:
        self._resume()
        while self.step < self.steps:
            began, first = time.perf_counter(), self.step
            saved = began
            epoch, start = divmod(self.step, self.per_epoch)
            last = min((epoch + 1) * self.per_epoch, self.steps)
            for images, targets in self._batches(epoch, start):
                self._step(images, targets)
                if self.step % REPORT_EVERY == 0 or self.step == last:
                    now = time.perf_counter()
                    progress = self._progress(epoch, (self.step - first) / (now - began))
                    report(progress)
                    if self.step < last and now - saved > self.options.save_every:
                        self._save()
                        saved = time.perf_counter()
                if self.step == last:
                    break
            self.sums.zero_()
            after_epoch(progress, self._outcome())
            self.network.train()
            self._save()
        self.network.load_state_dict(self._outcome().state_dict())

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.source.batches(
            seed=self.seed,
            epoch=epoch,
            start=start,
            batch_size=self.recipe.batch_size,
            rank=self.world.rank,
            world=self.world.size,
            device=self.world.device,
        )

    def _step(self, images: Tensor, targets: Tensor) -> None:
        # Seeded at each step, so that a step depends on earlier ones through the weights alone.
        torch.manual_seed(mix("step", self.seed, self.step, self.world.rank))
        labels = targets
        if self.recipe.mixup:
            images, targets = self._mixed(images, targets)
        rate = self.recipe.learning_rate * self.recipe.factor(self.step / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.options.accumulate
        chunks = zip(images.chunk(parts), targets.chunk(parts), labels.chunk(parts), strict=True)
        for number, (pixels, wanted, label) in enumerate(chunks, 1):
            together = self.world.size == 1 or number == parts
            with nullcontext() if together else self.objective.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss, logits = self.forward(pixels, wanted)
                self.scaler.scale(loss / parts).backward()
            loss, logits = loss.detach(), logits.detach()
            self.sums[0] += loss.double() / parts
            self.sums[1] += (logits.argmax(1) == label).double().mean() / parts
            self.bad = torch.where(loss.isfinite(), self.bad, self.bad.clamp(max=self.step))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.average:
            self.average.update_parameters(self.network)

    def _mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed pixels float [N, H, W, 3], and the probabilities of the classes [N, K]."""
        generator = torch.Generator().manual_seed(mix("mixup", self.seed, self.step))
        mixed = augment.mixup(images.float(), targets, self.recipe.mixup, generator)
        first, second = (
            F.one_hot(classes, len(self.source.classes)).float()
            for classes in (mixed.targets, mixed.others)
        )
        return mixed.images, torch.lerp(second, first, mixed.weight)

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.world.device).type, PRECISIONS[self.precision])

    def _progress(self, epoch: int, steps_per_second: float) -> Progress:
        totals, first_bad = self.sums / self.world.size, self.bad.clone()
        if self.world.size > 1:
            dist.all_reduce(totals)
            dist.all_reduce(first_bad, dist.ReduceOp.MIN)
        if (bad := int(first_bad)) <= self.steps:
            advice = "" if self.precision == "fp32" else ", or train with --precision fp32"
            raise Diverged(
                f"the loss is not finite at step {bad + 1} of {self.steps}; "
                f"lower the learning rate{advice}"
            )
        loss, right = (totals / (self.step - epoch * self.per_epoch)).tolist()
        return Progress(
            step=self.step,
            steps=self.steps,
            epoch=epoch,
            loss=loss,
            accuracy=right,
            images_per_second=steps_per_second * self.recipe.batch_size,
            learning_rate=self.optimizer.param_groups[0]["lr"],
        )

    def _outcome(self) -> ResNet:
        return cast("ResNet", self.average.module if self.average else self.network).eval()

    def _save(self) -> None:
        if self.checkpoint and self.world.leads:
            self.checkpoint.save(
                {
                    "step": self.step,
                    "sums": self.sums,
                    "network": self.network.state_dict(),
                    "average": self.average.state_dict() if self.average else None,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                }
            )

    def _resume(self) -> None:
        state = self.checkpoint.load(self.world.device) if self.checkpoint else None
        if state is None:
            return
        try:
            self.step, self.sums = state["step"], state["sums"]
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.average:
                self.average.load_state_dict(state["average"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            assert self.checkpoint
            raise CannotResume(f"{self.checkpoint.path} does not fit ({error})") from None


def precision(options: Options, device: str) -> str:
    """The precision in use: the option, or the device's fastest for "auto"."""
    return native_precision(device) if options.precision == "auto" else options.precision


def _average(network: ResNet, decay: float) -> AveragedModel:
    towards = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(copy.deepcopy(network), multi_avg_fn=towards, use_buffers=True)
    return averaged.requires_grad_(requires_grad=False)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = {layer.weight for layer in layers}
    everything = list(network.parameters())
    others = [parameter for parameter in everything if parameter not in weights]
    decay = recipe.weight_decay
    return torch.optim.SGD(
        [
            {"params": [p for p in everything if p in weights], "weight_decay": decay},
            {"params": others, "weight_decay": decay if recipe.decays == "all" else 0.0},
        ],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )


def can_compile(device: str) -> bool:
    """Whether `torch.compile` works on `device`; on a CPU it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception:  # noqa: BLE001  (whatever the error, eager mode works)
        return False
    return True
