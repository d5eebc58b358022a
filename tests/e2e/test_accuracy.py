"""Published weights, converted by the command, give their published answers over HTTP."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import COMMAND, Service, client, started
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

# Right of the 200 lossless images, as published weights and plain PyTorch give them.
PUBLISHED = {
    "resnet20-12fca82f.th": 182,
    "resnet56-4bfd9763.th": 188,
    "chenyaofo_cifar10_resnet20.pth": 185,
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = []
    for name in PUBLISHED:
        made.append(folder / f"{name.partition('.')[0]}.safetensors")
        source = SHARED / "weights" / name
        subprocess.run([COMMAND, "convert", "--from", "cifar", source, made[-1]], check=True)
    return made


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def published(request: pytest.FixtureRequest, bundles: list[Path]) -> Iterator[Service]:
    models = [argument for path in bundles for argument in ("--model", str(path))]
    with started(*models, "--precision", request.param) as running:
        yield running


def lossless() -> Iterator[tuple[str, bytes]]:
    with tarfile.open(SHARED / "data" / "cifar10-lossless-sample.tar") as archive:
        for member in archive:
            if content := archive.extractfile(member):
                yield member.name.split("/")[0], content.read()


@pytest.mark.parametrize("weights", PUBLISHED)
def test_as_many_are_right_as_published(published: Service, weights: str) -> None:
    name = weights.partition(".")[0]
    card = client.get(f"{published.url}/v1/models/{name}").json()
    right = 0
    for label, image in lossless():
        response = client.post(
            f"{published.url}/v1/classify",
            params={"model": name, "top_k": 1},
            content=image,
            headers={"Content-Type": "image/png"},
        )
        right += response.json()["predictions"][0]["label"] == label
    slack = 0 if card["precision"] == "fp32" else 2
    assert abs(right - PUBLISHED[weights]) <= slack
