"""Real processes that serve on fake GPUs: `tests/fake_gpu/sitecustomize.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from models import files
from tests.conftest import PATIENCE, Service, client, started
from tests.e2e.test_workers import all_ready, children, images, probabilities
from tests.support.waiting import until

FAKE_GPU = Path(__file__).parents[1] / "fake_gpu"
MODEL = ("--model", "builtin:resnet20-cifar10", "--precision", "fp32")


# `tests/e2e/test_devices.py` runs the service on simulated devices; this is about the simulation.
pytestmark = pytest.mark.slow


class OnFakeGpus:
    """A service, and the file that lists which devices it has lost."""

    def __init__(self, service: Service, lost: Path) -> None:
        self.service = service
        self._lost = lost

    def lose(self, *devices: int) -> None:
        """Every call on them fails; the others work."""
        # Whole at any moment: a process may be reading.
        with files.atomic(self._lost) as file:
            file.write_text(" ".join(map(str, devices)))

    def classify(self, image: bytes) -> httpx.Response:
        url = f"{self.service.url}/v1/classify?top_k=10&model=resnet20-cifar10"
        return client.post(url, content=image)


@contextmanager
def on_fake_gpus(folder: Path, *arguments: str, count: int) -> Iterator[OnFakeGpus]:
    """A service with arguments of `serve`, which sees `count` devices; it is ready."""
    lost = folder / "lost"
    found = filter(None, (str(FAKE_GPU), os.environ.get("PYTHONPATH")))
    with started(
        *arguments,
        ready=False,
        FAKE_GPUS=str(count),
        FAKE_GPUS_LOST=str(lost),
        PYTHONPATH=os.pathsep.join(found),
    ) as service:
        until(lambda: all_ready(service), PATIENCE)
        yield OnFakeGpus(service, lost)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnFakeGpus]:
    """Two front ends and two devices."""
    folder = tmp_path_factory.mktemp("two")
    devices = ("--device", "cuda:0,cuda:1", "--workers", "2")
    with on_fake_gpus(folder, *MODEL, *devices, count=2) as running:
        yield running


def test_two_gpus_give_the_probabilities_of_the_cpu(service: Service, two: OnFakeGpus) -> None:
    cpu = OnFakeGpus(service, Path("unused"))
    for image in images(12):
        ours, theirs = probabilities(two.classify(image)), probabilities(cpu.classify(image))
        assert ours == pytest.approx(theirs, abs=1e-4)
    (model,) = client.get(f"{two.service.url}/v1/models").json()["models"]
    assert "cuda:0" in model["device"]
    assert "cuda:1" in model["device"]


def test_front_ends_have_no_torch_though_it_has_fake_devices(two: OnFakeGpus) -> None:
    front_ends = children(two.service, "front_end")
    assert len(front_ends) == 2
    for pid in front_ends:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_lost_gpus_are_no_cpu_and_come_back_in_another_process(two: OnFakeGpus) -> None:
    (image,), before = images(1), children(two.service, "engine_process")
    two.lose(0, 1)
    until(lambda: two.classify(image).status_code == 503)
    until(lambda: children(two.service, "engine_process") != before)
    two.lose()
    until(lambda: two.classify(image).status_code == 200)
    (model,) = client.get(f"{two.service.url}/v1/models").json()["models"]
    assert "cuda" in model["device"]
