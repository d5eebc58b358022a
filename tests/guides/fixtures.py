"""What a reader of the documents has in the folder where the commands are typed."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from models import bundle, labels
from models.interchange.convert import export_to
from models.preprocess import CIFAR
from service.repository import catalog
from tests.models.data.test_cifar import packed, python
from tests.support import made, reference
from tests.support.tiny import randomised

ROOT = Path(__file__).parents[2]


def _ship(path: Path) -> None:
    shutil.copy(ROOT / "docs/ship.png", path)


def _images(path: Path) -> None:
    path.mkdir()
    with Image.open(ROOT / "docs/ship.png") as ship:
        for number, kind in enumerate(("png", "jpg", "webp")):
            ship.convert("RGB").save(path / f"{number}.{kind}")


def _labelled(path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    for label in labels.read("cifar10"):
        (path / label).mkdir(parents=True)
        for number in range(2):
            pixels = torch.randint(0, 256, (32, 32, 3), generator=random, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path / label / f"{number}.png")


def _held_out(path: Path) -> None:
    """Images with classes drawn from the trained network's answers at a temperature of 1.5."""
    made, random = catalog.load("builtin:resnet20-cifar10").bundle, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 4, 4, 3), generator=random, dtype=torch.uint8)
    pixels = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    with torch.inference_mode():
        likely = made.classifier()(pixels).pow(1 / 1.5)
    for number, label in enumerate(likely.multinomial(1, generator=random)[:, 0].tolist()):
        (path / made.labels[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number].numpy()).save(path / made.labels[label] / f"{number}.png")


def _trained(path: Path) -> None:
    with resources.as_file(resources.files("models.builtin")) as folder:
        shutil.copy(folder / "resnet20-cifar10.safetensors", path)


def _untrained(path: Path) -> None:
    bundle.write(catalog.load("random:resnet18").bundle, path)


def _of_akamaster() -> torch.nn.Module:
    network = reference.Network("akamaster", reference.BasicBlock, (3, 3, 3), 16, 10)
    return randomised(network).eval()


def _akamaster(path: Path) -> None:
    torch.save({"state_dict": _of_akamaster().state_dict()}, path)


def _pair(path: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.savez(path, input=images.numpy(), output=_of_akamaster()(images).numpy())


def _coloured(path: Path) -> None:
    made.folder(path, 132)


def _pictures(path: Path) -> None:
    made.folder(path, 90, seed=len(path.name))


def _archive(path: Path) -> None:
    folder = made.folder(path.parent / f".{path.name}", 48)
    with tarfile.open(path, "w:xz", preset=0) as tar:
        tar.add(folder, "images")


def _cifar(path: Path) -> None:
    packed(path.parent, path.name.removesuffix(".tar.gz"), python(10))


def _pets(variant: str) -> bundle.Bundle:
    network = randomised(models.build(variant, num_classes=2))
    return models.from_network(network, name="pets", input=CIFAR, labels=("a", "b"))


def _state_dict(path: Path) -> None:
    """With torchvision's names."""
    export_to("torchvision", _pets("resnet18"), path)


def _archived(path: Path) -> None:
    """As torch-model-archiver packs a state dict for TorchServe's image_classifier."""
    weights = path.with_name(".weights.pth")
    _state_dict(weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
        archive.writestr("index_to_name.json", '{"0": ["n02123045", "cat"], "1": "dog"}')
        archive.write(weights, "pets.pth")


def _graph(path: Path) -> None:
    """A graph without anything of ours."""
    onnx = pytest.importorskip("onnx")
    export_to("onnx", _pets("resnet20"), path)
    graph = onnx.load(path)
    del graph.metadata_props[:]
    onnx.save(graph, path)


def _label_file(path: Path) -> None:
    path.write_text("cat\ndog\n", "utf-8")


def _of_example(path: Path) -> None:
    """As deep_trainer 0.2.0 saves it for torch-resnet's example."""
    torch_resnet = pytest.importorskip("torch_resnet")
    network = torch_resnet.ResNet20()
    network.set_head(torch.nn.Linear(network.out_planes, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save({**state, "val": 0.5, "scaler": torch.amp.GradScaler("cpu").state_dict()}, path)


def _unit(path: Path) -> None:
    shutil.copy(ROOT / "deploy/systemd" / path.name, path)


# By the name that a document calls it.
FIXTURES: dict[str, Callable[[Path], None]] = {
    "docs/ship.png": _ship,
    "ship.png": _ship,
    "photos": _images,
    "pets.mar": _archived,
    "litserve/pets.pth": _state_dict,
    "model_repository/pets/1/model.onnx": _graph,
    "model_repository/pets/labels.txt": _label_file,
    "cifar10-test": _labelled,
    "held-out": _held_out,
    "flowers": _coloured,
    "my-pictures": _pictures,
    "other-pictures": _pictures,
    "train.tar.xz": _archive,
    "test.tar.xz": _archive,
    "cifar-10-python.tar.gz": _cifar,
    "resnet20-12fca82f.th": _akamaster,
    "experiments/CIFAR10/ResNet20-ProjectionShortcut/111/checkpoints/best.ckpt": _of_example,
    "reference.npz": _pair,
    "deploy/systemd/resnet-serve.service": _unit,
    "resnet20.safetensors": _trained,
    "resnet18.safetensors": _untrained,
}


def _made(name: str, text: str) -> bool:
    """Whether a command of `text` writes it, which would not replace what is there."""
    line = rf"^resnet-serve (convert|train)\b(?:[^\n\\]|\\\n)* {re.escape(name)}$"
    return bool(re.search(line, text, re.MULTILINE))


def lay_out(folder: Path, text: str) -> None:
    """Makes in `folder` those of FIXTURES that `text` names and does not make itself."""
    for name, make in FIXTURES.items():
        if name in text and not _made(name, text):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
