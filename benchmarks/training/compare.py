"""How many images a second ResNet-20 trains on, here and in torch-resnet's own example.

python -m pip install --no-deps -r benchmarks/training/requirements.txt
python -m benchmarks.training.compare --json results.json

The example is run by `torch_resnet_example`: eager and in fp32 on a CPU, with mixed precision on a
GPU. This project's side is `models.training.loop` as `resnet-serve train` runs it,
without the test after each epoch. Both load and augment random images of CIFAR's size, whose
content takes no part in the time.

Every round is a process of its own for each side, in turn, so that the machine's drift hits both
alike. The first steps, in which workers start and the network is compiled, do not count.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.stopwatch import Enough, Stopwatch
from benchmarks.training import torch_resnet_example
from models import labels, variants
from models.data.datasets import Dataset
from models.data.source import Resident
from models.resnet import build
from models.training import loop, memory
from models.training.loop import Options
from models.training.parallel import World
from models.training.recipes import RECIPES
from service.cli.load.document import as_text
from service.cli.load.environment import machine

OURS, THEIRS = "resnet-serve", "torch-resnet"
GIVING_BACK = "without keeping memory"  # See models.training.memory.
NEEDED = ("deep_trainer", "tensorboard", "torch_resnet", "torchvision")
INSTALL = "pip install --no-deps -r benchmarks/training/requirements.txt"
PACKAGES = ("resnet-serve", "torch", "torchvision", "torch-resnet", "deep-trainer", "numpy")


@dataclass(frozen=True, slots=True)
class Plan:
    """What both sides do: `steps` that count after `warm_up` ones, of `batch_size` images.

    `warm_up` should be longer than the two batches that each of `workers` prepares ahead.
    """

    steps: int = 200
    warm_up: int = 40
    batch_size: int = 128
    images: int = 50_000
    workers: int = torch_resnet_example.WORKERS
    device: str = "cpu"
    compiled: bool = True

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(
            warm_up=self.warm_up,
            steps=self.steps,
            batch_size=self.batch_size,
            device=self.device,
        )


def images(count: int) -> Dataset:
    """Random images with random classes, the same in each process."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Dataset(pixels, random.integers(0, 10, count), labels.read("cifar10"), "random")


def ours(plan: Plan, *, keep_freed: bool = True) -> dict[str, Any]:
    """This project's loop; compiled, and in its own choice of precision."""
    if keep_freed:
        memory.keep_freed()
    watch = plan.stopwatch()
    data = images(plan.images)
    row = variants.variant("resnet20")
    torch.manual_seed(0)
    network = build("resnet20", num_classes=len(data.classes))
    total = plan.warm_up + plan.steps
    # An epoch more: a loop that reports now and then must report once after the last step.
    epochs = 1 + math.ceil(total / (plan.images // plan.batch_size))
    recipe = replace(RECIPES["quick"], batch_size=plan.batch_size).lasting("epochs", epochs)
    options = Options(compiled=plan.compiled)
    with suppress(Enough):
        loop.train(
            network,
            Resident(data, plan.device),
            row.input,
            recipe,
            seed=0,
            world=World(0, 1, plan.device),
            options=options,
            report=lambda at: watch.lap(at.step),
        )
    compiled = plan.compiled and loop.can_compile(plan.device)
    precision = loop.precision(options, plan.device)
    return watch.figures() | {"compiled": compiled, "precision": precision}


def theirs(plan: Plan) -> dict[str, Any]:
    """torch-resnet's example; in mixed precision, its standard, on a GPU alone."""
    watch = plan.stopwatch()
    torch.manual_seed(0)
    mixed = plan.device.startswith("cuda")
    torch_resnet_example.train(
        images(plan.images),
        steps=plan.warm_up + plan.steps + 1,
        batch_size=plan.batch_size,
        device=plan.device,
        mixed=mixed,
        lap=watch.lap,
        workers=plan.workers,
    )
    return watch.figures() | {"compiled": False, "precision": "mixed" if mixed else "fp32"}


SIDES: dict[str, Callable[[Plan], dict[str, Any]]] = {
    THEIRS: theirs,
    OURS: ours,
    GIVING_BACK: partial(ours, keep_freed=False),
}


def measure(plan: Plan, rounds: int, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Each side, `rounds` times in turn.

    Raises:
        SystemExit: a package is missing, or a side failed; the message says which.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f"{THEIRS}'s example needs {', '.join(missing)}: {INSTALL}")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(1, rounds + 1):
        for side, found in runs.items():
            found.append(_in_a_process(side, plan))
            say(f"round {number}: {side} {found[-1]['images_per_second']:.0f} images/s")
    figures = {
        side: {
            "median": round(statistics.median(run["images_per_second"] for run in found), 1),
            "rounds": found,
        }
        for side, found in runs.items()
    }
    return {
        "machine": machine(),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "plan": asdict(plan),
        "n": rounds,
        "images_per_second": figures,
        "ratio": round(figures[OURS]["median"] / figures[THEIRS]["median"], 3),
    }


def _in_a_process(side: str, plan: Plan) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training.compare", "--side", side]
    done = subprocess.run(
        [*command, "--plan", json.dumps(asdict(plan))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise SystemExit(f"{side} failed: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def table(figures: dict[str, Any]) -> str:
    """What a person reads of `measure`'s figures."""
    lines = [f"{figures['machine']['processor']}, {figures['threads']} threads, n = {figures['n']}"]
    for side, found in figures["images_per_second"].items():
        last = found["rounds"][-1]
        rates = [run["images_per_second"] for run in found["rounds"]]
        how = f"{'compiled' if last['compiled'] else 'eager'}, {last['precision']}"
        busy = [run["busy"] for run in found["rounds"] if "busy" in run]
        share = f", device busy {statistics.median(busy):.0%}" if busy else ""
        lines.append(
            f"{side:<23} {found['median']:>9.1f} images/s "
            f"({min(rates):.0f} to {max(rates):.0f}; {how}{share})"
        )
    if figures["plan"]["device"].startswith("cuda") and not shutil.which("nvidia-smi"):
        lines.append("no device busy share: there is no nvidia-smi")
    return "\n".join([*lines, f"{'ratio':<23} {figures['ratio']:>9.2f}"])


def main() -> None:
    standard = Plan()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=standard.steps, help="that count, per round")
    parser.add_argument("--warm-up", type=int, default=standard.warm_up, help="steps before them")
    parser.add_argument("--batch-size", type=int, default=standard.batch_size)
    parser.add_argument("--device", default=standard.device, help="cpu or cuda:N")
    parser.add_argument("--eager", action="store_true", help="do not compile our side")
    parser.add_argument("--json", type=Path, help="a JSON file")
    # What each round's processes are started with.
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](Plan(**given.plan))))
        return
    if min(given.rounds, given.steps, given.batch_size) < 1 or given.warm_up < 0:
        parser.error("--rounds, --steps and --batch-size are at least 1, --warm-up at least 0")
    if given.json and not given.json.absolute().parent.is_dir():
        parser.error(f"{given.json}: there is no folder {given.json.parent}")
    plan = Plan(
        steps=given.steps,
        warm_up=given.warm_up,
        batch_size=given.batch_size,
        device=given.device,
        compiled=not given.eager,
    )
    figures = measure(plan, given.rounds, partial(print, flush=True))
    if given.json:
        given.json.write_text(as_text(figures), "utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
