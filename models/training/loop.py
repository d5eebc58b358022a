"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.data import mixing, order
from models.data.seeds import mix
from models.data.source import Source
from models.hardware import native_precision
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.training.averaging import make_average
from models.training.balance import class_weights
from models.training.checkpoint import CannotResume, Checkpoint
from models.training.freezing import Still, freezing, train_mode
from models.training.keeping import Keeper, Outcome, Validation
from models.training.objective import Objective
from models.training.optimizer import clip_gradients, make_optimizer, set_rate
from models.training.parallel import ALONE, World, global_norms, set_batch
from models.training.recipe import Recipe

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
    `compiled`: use `torch.compile`, unless no compiler works, not for this network, or the run is
        too short to benefit.
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
AfterEpoch = Callable[[Progress, ResNet], Validation | None]


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
    after_epoch: AfterEpoch = lambda progress, network: None,
    start: Validation | None = None,
) -> Outcome:
    """Trains `network` in place, resuming from the checkpoint if it has a state.

    Equal seeds give equal weights on the same machine, even if training is stopped and resumed.
    `after_epoch` gets the network as it would be returned if training ended there, in evaluation
    mode; what the first process's measures of it on validation images decides which epoch is
    kept and when patience ends. `start`: the same of `network` as it is given, which makes it
    epoch 0: it may be kept too.

    Raises:
        Diverged: the loss is infinite or not a number.
        ValueError: the data are fewer than one batch, batches cannot be divided, the network has
            no stage to freeze, or the recipe needs a validation that `after_epoch` does not return.
        CannotResume: the checkpoint's state is damaged or belongs to another run.
    """
    parts = world.size * options.accumulate
    keep = source.applied.get("last_batch") == "keep"
    if not order.per_epoch(len(source), recipe.batch_size, keep=keep):
        raise ValueError(
            f"{source.source}: {len(source)} images are fewer than one batch of {recipe.batch_size}"
        )
    if recipe.batch_size % parts:
        raise ValueError(f"batches of {recipe.batch_size} cannot be divided into {parts} parts")
    last = len(source) % recipe.batch_size
    separate = parts > 1 and not (options.global_norm and options.accumulate == 1)
    if keep and separate and 0 < last < order.FEWEST * parts:
        raise ValueError(
            f"the last batch's {last} images are too few for {parts} parts; choose another batch "
            'size, or last_batch "drop"'
        )
    if options.checkpoint_blocks:
        network.checkpoint_blocks()
    shared = world if options.global_norm else ALONE
    with global_norms(network, shared), freezing(network, recipe) as still, _repeatable():
        run = _Run(network, source, spec, recipe, seed, world, options, checkpoint)
        outcome = run.go(still, start, report, after_epoch)
    network.eval()
    return outcome


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
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        keep = source.applied.get("last_batch") == "keep"
        self.per_epoch = order.per_epoch(len(source), recipe.batch_size, keep=keep)
        self.steps = recipe.steps(self.per_epoch)
        self.average = make_average(network, recipe, self.steps)
        self.keeper = Keeper(recipe, world)
        weights = class_weights(source.counts) if recipe.balance == "loss" else None
        self.objective: nn.Module = Objective(network, spec, recipe.label_smoothing, weights)
        self.objective.to(device)
        if world.size > 1:
            ids = [device] if device.type == "cuda" else None
            self.objective = DistributedDataParallel(self.objective, device_ids=ids)
        self.optimizer = make_optimizer(network, recipe)
        self.precision = precision(options, world.device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.generator = _default_generator(device)
        self.step, self.rate = 0, recipe.learning_rate
        pays = self.steps >= COMPILE_FROM
        compiled = options.compiled and pays and can_compile(world.device)
        self.forward = torch.compile(self.objective) if compiled else self.objective
        self.compiles = False
        # The epoch's sums of loss and accuracy, and those of each part of the steps since the last
        # report: adding them up at each step would take longer than the optimizer.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.figures: list[Tensor] = []

    def go(
        self,
        still: Still,
        start: Validation | None,
        report: Callable[[Progress], None],
        after_epoch: AfterEpoch,
    ) -> Outcome:
        if start:
            self.keeper.offer(0, start, self.network)
        self._resume()
        while self.step < self.steps and not self.keeper.exhausted:
            train_mode(self.network, still)
            began, first = time.perf_counter(), self.step
            saved = began
            epoch, done = divmod(self.step, self.per_epoch)
            last = min((epoch + 1) * self.per_epoch, self.steps)
            for images, targets in self._batches(epoch, done):
                self._try(images, targets)
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
            result = self._result()
            self.keeper.offer(epoch + 1, after_epoch(progress, result), result)
            self._save()
        self.network.load_state_dict(self.keeper.tensors or self._result().state_dict())
        return self.keeper.outcome(stopped_early=self.step < self.steps)

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

    def _try(self, images: Tensor, targets: Tensor) -> None:
        """A step, which is repeated in eager mode if the network cannot be compiled: that shows
        in its first forward or backward pass only."""
        if self.compiles or self.forward is self.objective:
            return self._step(images, targets)
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            self.compiles = self._size(self.step % self.per_epoch) == self.recipe.batch_size
            self._step(images, targets)
        except Exception:  # noqa: BLE001  (whatever it was, eager mode goes on or fails by itself)
            self.network.load_state_dict(before)
            self.figures.clear()
            self.forward = self.objective
            self._step(images, targets)

    def _step(self, images: Tensor, targets: Tensor) -> None:
        # Seeded at each step, so that a step depends on earlier ones through the weights alone.
        self.generator.manual_seed(mix("step", self.seed, self.step, self.world.rank))
        labels = targets
        size = self._size(self.step % self.per_epoch)
        whole = size == self.recipe.batch_size
        if not whole:
            set_batch(self.network, size)
        if len(images) and (self.recipe.mixup or self.recipe.cutmix):
            images, targets = self._mixed(images, targets)
        self.rate = self.recipe.learning_rate * self.recipe.factor(self.step / self.steps)
        set_rate(self.optimizer, self.rate)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.options.accumulate
        chunks = zip(*(each.tensor_split(parts) for each in (images, targets, labels)), strict=True)
        # Compiled code would become that for any size, which is slower.
        forward = self.forward if whole else self.objective
        for number, (pixels, wanted, label) in enumerate(chunks, 1):
            together = self.world.size == 1 or number == parts
            with nullcontext() if together else self.objective.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss, figures = forward(pixels, wanted, label)
                # Of the batch's images, over all processes, whose gradients are averaged. A batch
                # may have fewer images than there are processes: the loss of none is not a number.
                share = len(pixels) * self.world.size / size
                self.scaler.scale(loss if share == 1 else loss * share).backward()
            weight = share * size / self.recipe.batch_size
            self.figures.append(figures * weight if len(pixels) else torch.zeros_like(figures))
        if self.recipe.clip:
            clip_gradients(self.optimizer, self.scaler, self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not whole:
            set_batch(self.network, None)
        self.step += 1
        if self.average:
            self.average.update(self.network, self.step)

    def _size(self, number: int) -> int:
        """The number of images in a batch of an epoch, over all processes."""
        return min(self.recipe.batch_size, len(self.source) - number * self.recipe.batch_size)

    def _mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed pixels float [N, H, W, C], and the probabilities of the classes [N, K]."""
        generator = torch.Generator().manual_seed(mix("mixup", self.seed, self.step))
        alphas = {mixing.mixup: self.recipe.mixup, mixing.cutmix: self.recipe.cutmix}
        asked = [mix_with for mix_with, alpha in alphas.items() if alpha]
        drawn = int(torch.randint(2, (), generator=generator)) if len(asked) == 2 else 0
        mixed = asked[drawn](images.float(), targets, alphas[asked[drawn]], generator)
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
        parts, count = self.options.accumulate, len(self.figures)
        figures = torch.stack(self.figures).double()
        self.figures.clear()
        self.sums += figures.sum(0)
        steps = self.step - (count - 1 - torch.arange(count, device=figures.device)) // parts
        finite = figures[:, 0].isfinite()
        totals, first_bad = self.sums / self.world.size, steps.where(~finite, self.steps + 1).min()
        if self.world.size > 1:
            dist.all_reduce(totals)
            dist.all_reduce(first_bad, dist.ReduceOp.MIN)
        if (bad := int(first_bad)) <= self.steps:
            advice = "" if self.precision == "fp32" else ", or train with --precision fp32"
            raise Diverged(
                f"the loss is not finite at step {bad} of {self.steps}; "
                f"lower the learning rate{advice}"
            )
        batches = self.step - epoch * self.per_epoch
        complete, last = batches - 1, self._size(batches - 1) / self.recipe.batch_size
        loss, right = (totals / (complete + last)).tolist()
        return Progress(
            step=self.step,
            steps=self.steps,
            epoch=epoch,
            loss=loss,
            accuracy=right,
            images_per_second=steps_per_second * self.recipe.batch_size,
            learning_rate=self.rate,
        )

    def _result(self) -> ResNet:
        return (self.average.network if self.average else self.network).eval()

    def _save(self) -> None:
        if self.checkpoint and self.world.leads:
            self.checkpoint.save(
                {
                    "step": self.step,
                    "sums": self.sums,
                    "network": self.network.state_dict(),
                    "average": self.average.state_dict() if self.average else None,
                    "keeper": self.keeper.state_dict(),
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
            self.keeper.load_state_dict(state["keeper"])
            if self.average:
                self.average.load_state_dict(state["average"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            assert self.checkpoint
            raise CannotResume(f"{self.checkpoint.path} does not fit ({error})") from None


def _default_generator(device: torch.device) -> torch.Generator:
    """The one that dropout draws from; `torch.manual_seed` seeds those of all kinds of devices,
    which takes a hundred times as long."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def precision(options: Options, device: str) -> str:
    """The precision in use: the option, or the device's fastest for "auto"."""
    return native_precision(device) if options.precision == "auto" else options.precision


def can_compile(device: str) -> bool:
    """Whether `torch.compile` works on `device`; on a CPU it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception:  # noqa: BLE001  (whatever the error, eager mode works)
        return False
    return True
