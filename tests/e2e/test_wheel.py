"""A wheel built from the checkout works installed elsewhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from service.http.routers.pages import WEB
from tests.conftest import client, encoded, started

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_contains_labels_page_and_the_embedded_bundle(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    for wanted in (
        "models/labels/cifar10.txt",
        "models/labels/cifar100.txt",
        "models/labels/imagenet1k.txt",
        *(f"service/http/web/{file}" for file in WEB),
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    for name, most in (("resnet10-cifar10", 4_000_000), ("resnet20-cifar10", 1_200_000)):
        assert archive.getinfo(f"models/builtin/{name}.safetensors").file_size <= most


@pytest.mark.slow
def test_it_serves_from_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    # What it depends on is installed already; only its own packages must come from the wheel.
    subprocess.run([*PIP, "install", "--no-deps", "--target", site, wheel], check=True)
    where = "import service, models; print(service.__file__, models.__file__)"
    printed = subprocess.check_output(
        [sys.executable, "-c", where], env={"PYTHONPATH": str(site)}, cwd=tmp_path, text=True
    )
    assert [Path(path).is_relative_to(site) for path in printed.split()] == [True, True]
    module = [sys.executable, "-m", "service.cli"]
    with started(command=module, PYTHONPATH=str(site)) as service:
        answer = client.post(f"{service.url}/v1/classify", content=encoded()).json()
        assert answer["model"] == "resnet10-cifar10"
        assert client.get(service.url).text.startswith("<!doctype html>")
