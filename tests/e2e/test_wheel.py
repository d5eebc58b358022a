"""A wheel built from the checkout works installed elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from service.http.routers.pages import WEB
from tests.conftest import Service, client, encoded, started

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
        "models/py.typed",
        "service/py.typed",
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


def needed_by(package: str, found: set[str] | None = None) -> set[str]:
    """The names of `package` and of all that it requires, without extras."""
    found = set() if found is None else found
    found.add(package)
    for requirement in metadata.requires(package) or ():
        name = re.split(r"[^\w.-]", requirement)[0]
        if ";" not in requirement and name not in found:
            needed_by(name, found)
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, installed without dependencies, and httpx."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed_by("httpx") | {"typing_extensions"}:
        for file in metadata.files(package) or ():
            top, installed = file.parts[0], Path(str(file.locate()))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to([installed, *installed.parents][len(file.parts) - 1])
    return python.parent


PROGRAM = """
import pathlib, sys
from service.client import Client
image = pathlib.Path(sys.argv[2]).read_bytes()
with Client(sys.argv[1]) as client:
    assert client.ready()
    served = client.model(client.models()[0].name)
    assert served.ready
    for source in (sys.argv[2], image):
        assert client.classify(source).best.label == client.classify(image).best.label
    assert client.embed(image).dimensions == served.embedding
    assert client.explain(image).grid
known = {"torch", "numpy", "PIL", "pydantic", "fastapi", "click", "yaml"}
print(sorted(known & set(sys.modules)))
"""


def test_the_client_needs_httpx_only(bare: Path, service: Service, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    image.write_bytes(encoded())
    command = [str(bare / "python"), "-I", "-W", "error", "-c", PROGRAM, service.url, str(image)]
    assert subprocess.check_output(command, text=True, cwd=tmp_path) == "[]\n"
    lacks = [str(bare / "python"), "-I", "-c", "import torch"]
    assert subprocess.run(lacks, check=False, capture_output=True).returncode == 1


def test_the_command_says_what_it_lacks(bare: Path, tmp_path: Path) -> None:
    command = [str(bare / "resnet-serve"), "serve"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("resnet-serve: needs click, which is not installed")
    assert done.stderr.count("\n") == 1
