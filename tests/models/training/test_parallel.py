"""Two processes that train together have the result of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models import bundle
from models.training.parallel import GlobalNorm, World, global_norms, join
from tests.support import made, rounding

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
    untrained = bundle.untrained(one.architecture, "x", one.input).tensors
    # Six steps there and back, one after another.
    allowed = rounding.of_sums(rounding.sums(one.tensors) * 2 * 6)
    for name, tensor in one.tensors.items():
        moved = (tensor - untrained[name]).abs().max().item()
        assert moved > 0
        torch.testing.assert_close(
            two.tensors[name], tensor, rtol=0, atol=allowed * moved, msg=name
        )


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
