"""Two processes that train together have the result of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import bundle, bundling
from models.data.augment import Augmentation
from models.data.source import Resident
from models.resnet import ResNet
from models.training.keeping import Validation
from models.training.loop import Options, Progress, train
from models.training.parallel import GlobalNorm, World, global_norms, join
from models.training.recipes import RECIPES
from tests.support import made, rounding, tiny
from tests.support.made import coloured

TRAIN = (
    *("train", "--recipe", "quick", "--epochs", "2", "--batch-size", "8", "--device", "cpu"),
    *("--precision", "fp32"),
)
TINY = (
    "--set",
    "blocks=[1,1]",
    "--set",
    "planes=[4,8]",
    "--learning-rate",
    "0.05",
    "--device",
    "cpu",
)


def run(*command: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def assert_trained_alike(
    found: dict[str, Tensor], one: dict[str, Tensor], untrained: dict[str, Tensor], steps: int
) -> None:
    """That two weights of equal training differ by rounding alone: that of their changes, there
    and back in each step, and that of the sums of weight and changes."""
    allowed = rounding.of_sums(rounding.sums(one) * 2 * steps)
    for name, tensor in one.items():
        moved = (tensor - untrained[name]).abs().max().item()
        atol = allowed * moved + rounding.of_sums([steps]) * tensor.abs().max().item()
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


@pytest.mark.slow
def test_two_processes_write_the_bundle_of_one(tmp_path: Path) -> None:
    """The same batches, normalised by the same statistics, and gradients averaged."""
    images = made.folder(tmp_path / "images", count=24)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("one", "two")}
    run("-m", "service.cli", *TRAIN, *TINY, "--data", images, paths["one"])
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    run(*together, "-m", "service.cli", *TRAIN, *TINY, "--data", images, paths["two"])
    one, two = (bundle.read(path) for path in paths.values())
    assert two.provenance["processes"] == 2
    untrained = bundling.untrained(one.architecture, "x", one.input).tensors
    assert not any(torch.equal(tensor, untrained[name]) for name, tensor in one.tensors.items())
    assert_trained_alike(two.tensors, one.tensors, untrained, steps=6)


UNEVEN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
import torch
from models.data.augment import Augmentation
from models.data.source import Resident
from models.resnet import ResNet
from models.training.loop import Options, train
from models.training.parallel import join
from tests.models.training.test_loop import RECIPE, replace, separable
from tests.support import tiny

torch.set_num_threads(1)
with join("cpu") as world:
    torch.manual_seed(0)
    network = ResNet(tiny.architecture(num_classes=2))
    source = Resident(separable(18), "cpu", Augmentation(crop_padding=1, last_batch="keep"))
    recipe = replace(RECIPE, batch_size=15, last_batch="keep").lasting("epochs", 2)
    options = Options(precision="fp32")
    train(network, source, tiny.INPUT, recipe, seed=1, world=world, options=options)
    if world.leads:
        torch.save(network.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_last_batch_is_divided_among_processes(tmp_path: Path) -> None:
    """Of its 3 images, three processes have one each and two have none."""
    script = tmp_path / "uneven.py"
    script.write_text(UNEVEN, "utf-8")
    one, five = tmp_path / "one.pt", tmp_path / "five.pt"
    run(script, one)
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 5, script, five)
    expected, found = torch.load(one), torch.load(five)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


RECIPE = replace(
    RECIPES["quick"].lasting("epochs", 2),
    batch_size=8,
    learning_rate=0.05,
    crop_padding=1,
)
CHANGES: list[dict[str, Any]] = [
    {"clip": 0.1},
    {"lookahead": 2, "bias_rate": 8.0, "decays": "all"},
    {"freeze": "stage1", "body_rate": 0.5},
    {"norm": "frozen"},
    {"freeze": "stem", "norm": "frozen", "batch_size": 10, "last_batch": "keep"},
    {"freeze": "stage1", "batch_size": 10, "last_batch": "keep", "balance": "loss"},
    {"balance": "loss", "label_smoothing": 0.1},
    {"keep": "best", "ema": 0.9},
    {"patience": 1},
]


def train_each(rank: int, size: int, folder: Path) -> None:
    """Trains by each of CHANGES as process `rank` of `size`; the first one saves the weights and
    what training returned."""
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size
        )
    made = []
    for change in CHANGES:
        torch.manual_seed(0)
        network = ResNet(tiny.architecture(num_classes=3))
        images = coloured(24, side=8)
        # Twice as many of one class.
        targets = np.where(images.targets == 2, 1, images.targets)
        last = change.get("last_batch", "drop")
        augmentation = Augmentation(crop_padding=1, last_batch=last)
        source = Resident(replace(images, targets=targets), "cpu", augmentation)

        def measure(progress: Progress, result: ResNet) -> Validation | None:
            return None if rank else Validation(1 - progress.epoch / 2, 1)

        outcome = train(
            network,
            source,
            tiny.INPUT,
            replace(RECIPE, **change),
            seed=0,
            world=World(rank, size, "cpu"),
            options=Options(precision="fp32"),
            after_epoch=measure,
        )
        made.append((asdict(outcome), network.state_dict()))
    if rank == 0:
        torch.save(made, folder / f"{size}.pt")


@pytest.mark.slow
def test_two_processes_optimise_and_keep_as_one_does(tmp_path: Path) -> None:
    train_each(0, 1, tmp_path)
    torch.multiprocessing.spawn(train_each, (2, tmp_path), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    torch.manual_seed(0)
    untrained = ResNet(tiny.architecture(num_classes=3)).state_dict()
    found = (torch.load(tmp_path / f"{size}.pt") for size in (1, 2))
    for change, (first, one), (second, two) in zip(CHANGES, *found, strict=True):
        assert second == first, change
        assert_trained_alike(two, one, untrained, steps=6)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """A process group of this process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield World(0, 2, "cpu")
    torch.distributed.destroy_process_group()


def test_global_norms_compute_what_batch_norm_does(alone: World) -> None:
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (plain, shared):
        nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    inputs = [torch.randn(4, 3, 5, 5, requires_grad=True) for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    with global_norms(shared, alone):
        assert isinstance(shared, GlobalNorm)
        outputs = [norm(x * 3 + 1) for norm, x in zip((plain, shared), inputs, strict=True)]
        for output in outputs:
            (output * torch.arange(5)).sin().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(shared.weight.grad, plain.weight.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    assert type(shared) is nn.BatchNorm2d, "as it was before"
    shared.eval()
    plain.eval()
    assert torch.equal(shared(inputs[0]), plain(inputs[0]))


def test_one_process_normalises_as_ever() -> None:
    norm = nn.BatchNorm2d(3)
    with join("cpu") as world, global_norms(norm, world):
        assert world == World(0, 1, "cpu")
        assert type(norm) is nn.BatchNorm2d


def test_torch_uses_no_more_threads_than_there_are_cpus() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with join("cpu", cpus=2):
            assert torch.get_num_threads() == 2
        with join("cpu", cpus=8):
            assert torch.get_num_threads() == 2, "nor more than it was told to"
    finally:
        torch.set_num_threads(before)
