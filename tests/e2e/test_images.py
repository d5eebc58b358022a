"""Images of every format through every path: served, on the command line, and evaluated."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import image_files
from tests.conftest import Service, client, started
from tests.support.commands import run

MODEL = "random:resnet20"


def photograph() -> Image.Image:
    """Of detail that is lost at a fraction of its size."""
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8))


def saved(format: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def probabilities(service: Service, data: bytes, model: str = "") -> list[float]:
    query = {"top_k": 10} | ({"model": model} if model else {})
    headers = {"Content-Type": "image/jpeg"}
    response = client.post(
        f"{service.url}/v1/classify", content=data, params=query, headers=headers
    )
    assert response.status_code == 200, response.text
    rows = sorted(response.json()["predictions"], key=lambda row: int(row["class_id"]))
    return [row["probability"] for row in rows]


@pytest.mark.parametrize("format", [name for name in image_files.NAMES if name != "HEIF"])
def test_every_format_is_answered(service: Service, format: str) -> None:
    assert sum(probabilities(service, saved(format, photograph().resize((64, 48))))) > 0.99


def test_heic_is_answered_or_refused_by_its_name(service: Service) -> None:
    pytest.importorskip("pillow_heif")
    image_files.formats()
    assert sum(probabilities(service, saved("HEIF", photograph().resize((64, 48))))) > 0.99


def test_a_jpeg_without_its_end_gets_the_same_answer(service: Service) -> None:
    whole = saved("JPEG", photograph())
    assert probabilities(service, whole[:-2]) == probabilities(service, whole)
    half = client.post(
        f"{service.url}/v1/classify",
        content=whole[: len(whole) // 2],
        headers={"Content-Type": "image/jpeg"},
    )
    assert half.status_code == 400


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_exact_decoding_gives_the_pixels_of_a_lossless_copy(workers: str, tmp_path: Path) -> None:
    """A notebook decodes a JPEG in full, as its copy as PNG is."""
    jpeg = saved("JPEG", photograph())
    with Image.open(io.BytesIO(jpeg)) as image:
        png = saved("PNG", image)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"models:\n  - {{spec: '{MODEL}', name: exact, exact_decode: true}}\n"
        f"  - {{spec: '{MODEL}', name: scaled}}\n"
    )
    with started("--config", str(config), "--workers", workers, "--precision", "fp32") as running:
        models = client.get(f"{running.url}/v1/models").json()["models"]
        assert {each["name"]: each["exact_decode"] for each in models} == {
            "exact": True, "scaled": False
        }  # fmt: skip
        assert probabilities(running, jpeg, "exact") == pytest.approx(
            probabilities(running, png, "exact"), abs=1e-6
        )
        assert probabilities(running, jpeg, "scaled") != pytest.approx(
            probabilities(running, png, "scaled"), abs=1e-6
        )


def test_classify_and_evaluate_decode_exactly_too(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    jpeg = saved("JPEG", photograph())
    (folder / "a.JPG").write_bytes(jpeg[:-2])
    with Image.open(io.BytesIO(jpeg)) as image:
        (tmp_path / "a.png").write_bytes(saved("PNG", image))

    def first(path: Path, *flags: str) -> float:
        output = tmp_path / "rows.jsonl"
        run("classify", path, "--model", MODEL, "--precision", "fp32", "--overwrite", "--output",
            output, *flags)  # fmt: skip
        value: float = json.loads(output.read_text())["predictions"][0]["probability"]
        return value

    expected = first(tmp_path / "a.png")
    assert first(folder, "--exact") == pytest.approx(expected, abs=1e-6)
    assert first(folder) != pytest.approx(expected, abs=1e-6)
    losses = [
        json.loads(
            run("evaluate", tmp_path / "set", "--model", "builtin:resnet10-cifar10", "--json",
                "--precision", "fp32", *flags).stdout
        )
        for flags in ([], ["--exact"])
    ]  # fmt: skip
    assert [each["exact_decode"] for each in losses] == [False, True]
    assert losses[0]["nll"] != losses[1]["nll"]
