"""What GPUs have in use, by a stand-in for NVML: no machine of the tests has one."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.extras import install
from service.engines.nvml import LOOK_SECONDS, STALE_SECONDS, GpuMeter, meter_of
from service.metrics import GpuUse, Metrics

GIB = 2**30
UUID = "8a3c2d0e-0000-1111-2222-333344445555"


class NVMLError(Exception):
    pass


# ruff: noqa: N802 - the functions of the library
class Library:
    """As `pynvml` on a host whose second GPU, or a slice of it, is cuda:0 of this process."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, kind: str = "GPU", broken: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.broken = {*broken}
        self.used = 3 * GIB
        self.looks = 0

    def _of(self, function: str, handle: str) -> None:
        assert handle == "second"
        if function in self.broken:
            raise NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        if "init" in self.broken:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        handles = {"GPU-00000000": "first", f"{self.kind}-{UUID}": "second"}
        if uuid not in handles:
            raise NVMLError("Not Found")
        return handles[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        self.looks += 1
        self._of("memory", handle)
        return SimpleNamespace(used=self.used, total=80 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self._of("utilisation", handle)
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        self._of("temperature", handle)
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self._of("power", handle)
        return 312_500  # milliwatts


@pytest.fixture(autouse=True)
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"cuda:0": SimpleNamespace(uuid=UUID)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {"cuda:0": 2 * GIB}.__getitem__)


WHOLE = GpuUse(3 * GIB, 80 * GIB, 2 * GIB, 0.87, 61, 312.5)


def exposed(metrics: Metrics) -> dict[str, float]:
    """The samples of GPUs, by name and device."""
    return {
        f"{sample.name.removeprefix('resnet_serve_gpu_')} {sample.labels['device']}": sample.value
        for family in metrics.collected().collect()
        for sample in family.samples
        if family.name.startswith("resnet_serve_gpu_")
    }


@pytest.mark.parametrize("kind", ["GPU", "MIG"])
def test_a_device_is_found_by_its_uuid_and_read_in_base_units(kind: str) -> None:
    assert GpuMeter("cuda:0", Library(kind)).read() == WHOLE


def test_each_look_sees_what_is_now() -> None:
    library = Library()
    meter = GpuMeter("cuda:0", library)
    library.used = 5 * GIB
    assert meter.read().memory_used == 3 * GIB
    meter.look()
    assert meter.read().memory_used == 5 * GIB


def test_scrapes_do_not_ask_the_device() -> None:
    library, metrics = Library(), Metrics()
    metrics.watch_gpu("cuda:0", GpuMeter("cuda:0", library).read)
    for _ in range(5):
        metrics.render()
    assert library.looks == 1


def test_the_series_have_the_units_of_their_names() -> None:
    metrics = Metrics()
    assert exposed(metrics) == {}
    metrics.watch_gpu("cuda:0", GpuMeter("cuda:0", Library()).read)
    assert exposed(metrics) == {
        "memory_used_bytes cuda:0": 3 * GIB,
        "memory_total_bytes cuda:0": 80 * GIB,
        "memory_reserved_bytes cuda:0": 2 * GIB,
        "utilisation_ratio cuda:0": 0.87,
        "temperature_celsius cuda:0": 61,
        "power_watts cuda:0": 312.5,
    }


def test_what_a_slice_does_not_tell_has_no_series(caplog: pytest.LogCaptureFixture) -> None:
    library = Library("MIG", ("utilisation", "temperature", "power"))
    metrics, meter = Metrics(), GpuMeter("cuda:0", library)
    metrics.watch_gpu("cuda:0", meter.read)
    meter.look()
    assert {name.partition("_bytes")[0] for name in exposed(metrics)} == {
        "memory_used", "memory_total", "memory_reserved",
    }  # fmt: skip
    (record,) = caplog.records
    assert record.message == "cuda:0: some GPU metrics are missing: Not Supported"


@pytest.mark.parametrize("broken", [None, Library(broken=("init",)), Library("other")])
def test_without_nvml_only_torchs_own_memory_is_known(
    broken: Library | None, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    metrics.watch_gpu("cuda:0", GpuMeter("cuda:0", broken).read)
    assert exposed(metrics) == {"memory_reserved_bytes cuda:0": 2 * GIB}
    assert len(caplog.records) == (broken is not None)


def test_a_device_that_is_lost_while_serving_breaks_no_scrape(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, metrics = Library(), Metrics()
    meter = GpuMeter("cuda:0", library)
    metrics.watch_gpu("cuda:0", meter.read)
    library.broken = {"memory", "utilisation", "temperature", "power"}

    def fails(device: str) -> int:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "memory_reserved", fails)
    for _ in range(3):
        meter.look()
    assert len(exposed(metrics)) == 6
    assert all(map(math.isnan, exposed(metrics).values()))
    assert len(caplog.records) == 1


def test_what_was_seen_long_ago_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML may hang with its device."""
    now = 1000.0
    monkeypatch.setattr("service.engines.nvml.time.monotonic", lambda: now)
    meter = GpuMeter("cuda:0", Library())
    now += STALE_SECONDS - 0.1
    assert meter.read() == WHOLE
    now += 0.2
    assert math.isnan(meter.read().memory_used)


@pytest.fixture
def _no_meters() -> Iterator[None]:
    meter_of.cache_clear()
    yield
    meter_of.cache_clear()


@pytest.mark.usefixtures("_no_meters")
def test_models_share_the_meter_of_a_device_which_keeps_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[GpuMeter] = []

    def keep_looking(meter: GpuMeter) -> None:
        begun.append(meter)

    monkeypatch.setattr(GpuMeter, "keep_looking", keep_looking)
    monkeypatch.setitem(sys.modules, "pynvml", Library())
    assert meter_of("cuda:0").read() == WHOLE
    assert meter_of("cuda:0") is meter_of("cuda:0")
    assert begun == [meter_of("cuda:0")]


@pytest.mark.usefixtures("_no_meters")
def test_without_the_extra_a_line_says_what_to_install(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuMeter, "keep_looking", lambda meter: None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.INFO):
        assert meter_of("cuda:0").read().memory_reserved == 2 * GIB
    (record,) = caplog.records
    assert record.message == f"cuda:0: for GPU metrics, {install('gpu')}"


def test_it_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    meter = GpuMeter("cuda:0", library)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise EOFError

    monkeypatch.setattr("service.engines.nvml.time.sleep", sleep)
    with pytest.raises(EOFError):
        meter.keep_looking()
    assert library.looks == 3
    assert set(slept) == {LOOK_SECONDS}
