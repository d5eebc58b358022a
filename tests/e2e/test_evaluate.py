"""What is evaluated is what is served."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from models import bundle
from models.data import datasets
from models.evaluation.evaluate import batches, evaluate
from service.cli.main import main
from service.repository import catalog, offline
from tests.conftest import Service, client, started
from tests.support import rounding

CARD = "# For a test\n\nNot for *anybody* else.\n"
KINDS = ("PNG", "JPEG", "WEBP")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three classes and three formats, larger than the network sees and not square."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(18):
        file = folder / ("cat", "dog", "ship")[seed % 3] / f"{seed}.{KINDS[seed % 9 // 3].lower()}"
        file.parent.mkdir(exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        image = Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)
        image.save(buffer, KINDS[seed % 9 // 3])
        file.write_bytes(buffer.getvalue())
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "calibrated.safetensors"
    made = catalog.load("builtin:resnet20-cifar10").bundle
    bundle.write(replace(made, name="calibrated", temperature=1.7, card=CARD), file)
    return file


@pytest.fixture(scope="module")
def own(calibrated: Path) -> Iterator[Service]:
    with started("--model", str(calibrated), "--engine", "eager", "--precision", "fp32") as running:
        yield running


@pytest.mark.parametrize(
    ("served", "kind"),
    [
        pytest.param("service", "openvino", id="openvino"),
        pytest.param("own", "eager", id="calibrated", marks=pytest.mark.slow),
    ],
)
def test_evaluation_sees_what_the_service_answers(
    request: pytest.FixtureRequest, photos: Path, calibrated: Path, served: str, kind: str
) -> None:
    service: Service = request.getfixturevalue(served)
    name = "resnet20-cifar10" if served == "service" else "calibrated"
    spec = "builtin:resnet20-cifar10" if served == "service" else str(calibrated)
    model = client.get(f"{service.url}/v1/models/{name}").json()
    assert model["engine"] == kind
    flags = {"device": "cpu", "engine": kind, "precision": model["precision"]}
    opened, warm = offline.open_model(spec, **flags)
    data = datasets.read(photos, opened.input).relabelled(opened.labels)
    rows: list[NDArray[np.float32]] = []
    measured = evaluate(warm.infer, batches(data, 7), observe=lambda found, _: rows.append(found))

    right = 0
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    for file, row in zip(files, np.concatenate(rows), strict=True):
        answer = client.post(
            f"{service.url}/v1/classify",
            params={"model": name, "top_k": 10},
            content=file.read_bytes(),
        ).json()["predictions"]
        assert answer[0]["class_id"] == row.argmax()
        found = {each["class_id"]: each["probability"] for each in answer}
        rounding.assert_probabilities_near([found[i] for i in range(10)], row, opened.tensors)
        right += answer[0]["label"] == file.parent.name
    assert measured.top1 == right / 18

    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    done = CliRunner().invoke(main, ["evaluate", "--json", "--model", spec, *words, str(photos)])
    figures = json.loads(done.stdout)
    assert figures["images"] == 18
    assert figures["confusion"] == measured.confusion.tolist()
    assert figures["ece"] == pytest.approx(measured.ece, abs=1e-6)


def test_a_model_tells_its_temperature_and_alone_its_card(own: Service, service: Service) -> None:
    model = client.get(f"{own.url}/v1/models/calibrated").json()
    assert (model["temperature"], model["card"]) == (1.7, CARD)
    (listed,) = client.get(f"{own.url}/v1/models").json()["models"]
    assert listed["temperature"] == 1.7
    assert "card" not in listed
    plain = client.get(f"{service.url}/v1/models/resnet20-cifar10").json()
    assert (plain["temperature"], plain["card"]) == (1.0, "")
