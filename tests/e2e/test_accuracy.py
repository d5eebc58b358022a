"""Published weights, converted by the command, give their published answers over HTTP."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from service.cli.main import main
from tests.conftest import Service, client, started
from tests.support.shared import SHARED, needs_shared

pytestmark = needs_shared

# Right of the 200 lossless images, as published weights and plain PyTorch give them.
PUBLISHED = {
    ("resnet20-12fca82f.th", "fp32"): 182,
    ("resnet20-12fca82f.th", "bf16"): 182,
    ("resnet56-4bfd9763.th", "fp32"): 188,
    ("chenyaofo_cifar10_resnet20.pth", "fp32"): 185,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bundles")
    models: list[dict[str, str]] = []
    for name, precision in PUBLISHED:
        made = folder / f"{name.partition('.')[0]}.safetensors"
        if not made.exists():
            source = SHARED / "weights" / name
            # In this process, which has torch already.
            done = CliRunner().invoke(main, ["convert", "--from", "cifar", str(source), str(made)])
            assert done.exit_code == 0, done.output
        models.append({"name": f"{made.stem}-{precision}", "spec": str(made)})
        models[-1]["precision"] = precision
    config = folder / "serve.yaml"
    config.write_text(json.dumps({"models": models}))  # JSON is YAML.
    with started("--config", str(config)) as running:
        yield running


def lossless() -> Iterator[tuple[str, bytes]]:
    with tarfile.open(SHARED / "data" / "cifar10-lossless-sample.tar") as archive:
        for member in archive:
            if content := archive.extractfile(member):
                yield member.name.split("/")[0], content.read()


@pytest.mark.parametrize(("weights", "precision"), PUBLISHED)
def test_as_many_are_right_as_published(published: Service, weights: str, precision: str) -> None:
    name = f"{weights.partition('.')[0]}-{precision}"
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
    assert abs(right - PUBLISHED[weights, precision]) <= slack
