"""Several devices: an engine process each, which share the requests and are restarted alone.

The devices are those of `tests/support/fake_cuda.py`, in real processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_faults import go_on
from tests.e2e.test_frozen import live
from tests.e2e.test_runtime_models import ADMIN, WITH_KEY, delete, everywhere
from tests.e2e.test_start import fail
from tests.e2e.test_workers import all_ready, children, folder_of, is_ready, load
from tests.support.waiting import until

FAKE = Path(__file__).parents[1] / "fake_gpu"
MODEL = ("--model", "random:resnet20", "--precision", "fp32")
SMALL: dict[str, Any] = {"RESNET_SERVE_MAX_BATCH": "4", "RESNET_SERVE_MAX_QUEUE": "64"}


def with_gpus(count: Path) -> dict[str, Any]:
    """The environment in which torch sees as many CUDA devices as the file says; those that a file
    beside it lists fail."""
    found = filter(None, (str(FAKE), os.environ.get("PYTHONPATH")))
    return {
        "PYTHONPATH": os.pathsep.join(found),
        "FAKE_GPUS": str(count),
        "FAKE_GPUS_LOST": str(count.with_name("lost")),
    }


class Gpus:
    """A service, and the file that says how many GPUs a process sees that starts now."""

    def __init__(self, service: Service, count: Path) -> None:
        self.service = service
        self.count = count
        self.lost = count.with_name("lost")

    def engine(self, index: int) -> int | None:
        """The engine process that listens for a device: the number of the process."""
        path = f"{folder_of(self.service)}/engine-{index + 1}\n"
        sockets = Path("/proc/net/unix").read_text().splitlines(keepends=True)
        inodes = {line.split()[6] for line in sockets if line.endswith(path)}
        for pid in children(self.service, "engine_process"):
            with suppress(FileNotFoundError):  # It is ending, or has just closed a file.
                links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
                if any(link.startswith("socket:") and link[8:-1] in inodes for link in links):
                    return pid
        return None

    def images(self, index: int) -> float:
        """How many images of the default model a device has computed, in all its processes."""
        found = samples(self.service)
        return found[f'resnet_serve_device_images_total{{device="cuda:{index}",model="resnet20"}}']

    def until_it_computes(self, index: int) -> None:
        before = self.images(index)
        with load(self.service) as counts:
            until(lambda: self.images(index) > before)
        assert set(counts) == {200}


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    """One front end, and two GPUs."""
    count = tmp_path_factory.mktemp("gpus") / "count"
    count.write_text("2")
    with started(
        *MODEL, "--device", "cuda:all", **with_gpus(count), **WITH_KEY, **SMALL
    ) as service:
        gpus = Gpus(service, count)
        for index in range(2):
            gpus.until_it_computes(index)
        yield gpus


def card(service: Service, name: str = "resnet20") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"{service.url}/v1/models/{name}").json()
    return found


def test_a_model_on_two_devices_is_one_model_and_each_has_a_process(gpus: Gpus) -> None:
    service = gpus.service
    assert len(children(service, "engine_process")) == 2
    assert len(children(service, "front_end")) == 1
    shown = card(service)
    assert (shown["device"], shown["precision"]) == ("cuda:0, cuda:1", "fp32")
    assert (shown["state"], shown["reason"]) == ("ready", "")
    before = [gpus.images(index) for index in range(2)]
    with load(service) as counts:
        go_on(counts, 60)
    shares = [gpus.images(index) - before[index] for index in range(2)]
    # Each by its measured speed, which differs on a busy machine.
    assert min(shares) > 0.03 * sum(shares), shares
    assert set(counts) == {200}


def test_a_killed_engine_process_is_restarted_alone_and_no_request_fails(gpus: Gpus) -> None:
    service = gpus.service
    killed, other = gpus.engine(1), gpus.engine(0)
    assert killed is not None
    with load(service) as counts:
        go_on(counts)
        os.kill(killed, signal.SIGKILL)
        until(lambda: gpus.engine(1) not in (None, killed))
        assert is_ready(service)
        go_on(counts)
    assert set(counts) == {200}
    assert gpus.engine(0) == other
    assert live(service)[0] == 200
    gpus.until_it_computes(1)
    text = "".join(service.log)
    assert f"the engine process of cuda:1 ({killed}) ended with status -9" in text


def test_a_gpu_that_fails_under_load_fails_no_request(gpus: Gpus) -> None:
    service = gpus.service
    failing, other = gpus.engine(1), gpus.engine(0)
    with load(service) as counts:
        go_on(counts)
        gpus.lost.write_text("1")
        until(lambda: gpus.engine(1) != failing)
        gpus.lost.unlink()
        assert is_ready(service)
        go_on(counts)
    assert set(counts) == {200}
    assert gpus.engine(0) == other
    gpus.until_it_computes(1)
    assert f"the engine process of cuda:1 ({failing}) ended with status 70" in "".join(service.log)


def test_a_new_model_may_need_a_device_that_has_no_process_yet(gpus: Gpus) -> None:
    service = gpus.service
    before = {gpus.engine(0), gpus.engine(1)}

    def put(name: str, device: Any) -> Any:
        body = {"spec": "random:resnet20", "device": device, "engine": "eager", "max_batch": 2}
        return client.put(f"{service.url}/v1/models/{name}", json=body, headers=ADMIN)

    refused = put("mixed", ["cpu", "cuda:2"])
    assert refused.status_code == 422
    assert "cuda:2 is not available, torch sees 2 CUDA devices" in refused.json()["detail"]
    assert len(children(service, "engine_process")) == 2
    assert put("mixed", ["cpu", "cuda:1"]).status_code == 201
    assert everywhere(service, ["resnet20", "mixed"])
    assert card(service, "mixed")["device"] == "cpu, cuda:1"
    url = f"{service.url}/v1/classify?model=mixed"
    assert client.post(url, content=encoded()).status_code == 200
    assert len(children(service, "engine_process")) == 3
    assert {gpus.engine(0), gpus.engine(1)} == before
    assert delete(service, "mixed").status_code == 204
    assert {gpus.engine(0), gpus.engine(1)} == before


@pytest.mark.slow
def test_a_gpu_that_stays_lost_is_no_cpu_and_live_says_so_until_it_is_back(gpus: Gpus) -> None:
    service, lost = gpus.service, gpus.engine(1)
    assert lost is not None
    gpus.count.write_text("1")
    with load(service, callers=2) as counts:
        os.kill(lost, signal.SIGKILL)
        until(lambda: live(service)[0] == 503)
        assert is_ready(service)
        go_on(counts)
    assert set(counts) == {200}
    assert card(service)["device"] == "cuda:0, cuda:1"
    reason = (
        "the engine process of cuda:1 was restarted 5 times and did not serve: "
        "models[0].device: cuda:1 is not available, torch sees 1 CUDA devices; use auto or cpu"
    )
    assert live(service) == (503, reason)
    # What needs it is told at once.
    body = {"spec": "random:resnet20", "device": "cuda:1"}
    refused = client.put(f"{service.url}/v1/models/more", json=body, headers=ADMIN)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "torch sees 1 CUDA devices" in refused.json()["detail"]
    until(lambda: sum("cuda:1 cannot start: " in line for line in service.log) > 5)  # still tried
    gpus.count.write_text("2")
    until(lambda: live(service)[0] == 200)
    gpus.until_it_computes(1)


def test_what_auto_was_at_the_start_it_stays_when_the_gpu_is_lost(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("1")
    arguments = (*MODEL, "--device", "auto", "--workers", "2")
    with started(*arguments, **with_gpus(count), **SMALL) as service:
        until(lambda: all_ready(service))
        assert card(service)["device"] == "cuda:0"
        (engine,) = children(service, "engine_process")
        count.write_text("0")
        os.kill(engine, signal.SIGKILL)
        until(lambda: any("device: cuda:0 is not available" in line for line in service.log))
        assert not is_ready(service)
        assert card(service)["device"] == "cuda:0"
        reason = client.get(f"{service.url}/health/ready").json()["reasons"]["resnet20"]
        assert reason.startswith("the engine process of cuda:0 ")
        count.write_text("1")
        until(lambda: all_ready(service))
        assert client.post(f"{service.url}/v1/classify", content=encoded()).status_code == 200


def test_a_device_that_is_not_there_ends_the_start_with_one_line(tmp_path: Path) -> None:
    line = fail(*MODEL, "--device", "cuda:all,cpu")
    assert "--device: cuda:all is not available" in line


def test_a_device_that_only_a_new_model_found_lost_serves_it_later(tmp_path: Path) -> None:
    """Its process, in which no call succeeds any more, has no model that would notice."""
    count = tmp_path / "count"
    count.write_text("2")
    with started(
        *MODEL, "--device", "cuda:0", "--workers", "2", **with_gpus(count), **WITH_KEY, **SMALL
    ) as service:
        gpus = Gpus(service, count)

        def put() -> int:
            url = f"{service.url}/v1/models/second"
            fields = {"spec": "random:resnet20", "device": "cuda:1"}
            return client.put(url, json=fields, headers=ADMIN).status_code

        assert put() == 201
        assert delete(service, "second").status_code == 204
        before = gpus.engine(1)
        gpus.lost.write_text("1")
        assert put() == 503
        until(lambda: gpus.engine(1) not in {before, None})
        gpus.lost.unlink()
        until(lambda: put() == 201)
