"""What a GPU has in use, by NVIDIA's management library (NVML) and torch's allocator.

A call of NVML may take long where a device does not answer, so a thread makes them, once a second.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from models.extras import install
from service.metrics import GpuUse

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
STALE_SECONDS = 10.0


class GpuMeter:
    """Looks at one CUDA device of this process; what cannot be known is NaN.

    `nvml`: the module `pynvml`; None: only the memory of torch in this process is known. Nothing
    raises: what fails is logged once.
    """

    def __init__(self, device: str, nvml: Any) -> None:
        self._device = device
        self._nvml = nvml
        self._complained = False
        self._handle = None if nvml is None else self._ask(self._find)
        self.look()

    def read(self) -> GpuUse:
        """What was seen last; nothing if that is long ago."""
        return self._use if time.monotonic() - self._at < STALE_SECONDS else GpuUse()

    def look(self) -> None:
        use = self._looked()
        self._use, self._at = use, time.monotonic()

    def keep_looking(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def _find(self) -> Any:
        """NVML's handle of the device. It is found by its UUID, as CUDA_VISIBLE_DEVICES and
        CUDA_DEVICE_ORDER give a device another number in CUDA than in NVML."""
        nvml, uuid = self._nvml, torch.cuda.get_device_properties(self._device).uuid
        nvml.nvmlInit()
        try:
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:  # A slice of a GPU.
            return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def _looked(self) -> GpuUse:
        reserved = self._ask(torch.cuda.memory_reserved, self._device)
        use = GpuUse(memory_reserved=math.nan if reserved is None else reserved)
        if self._handle is None:
            return use
        nvml, handle = self._nvml, self._handle
        if (memory := self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
            use.memory_used, use.memory_total = memory.used, memory.total
        if (rates := self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)) is not None:
            use.utilisation = rates.gpu / 100
        heat = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        if heat is not None:
            use.temperature = heat
        if (milliwatts := self._ask(nvml.nvmlDeviceGetPowerUsage, handle)) is not None:
            use.power = milliwatts / 1000
        return use

    def _ask(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What `function` returns; None if it fails."""
        try:
            return function(*arguments)
        # No model must fail because a figure about its device is missing.
        except Exception as error:  # noqa: BLE001
            if not self._complained:
                self._complained = True
                log.warning("%s: some GPU metrics are missing: %s", self._device, error)
            return None


@cache
def meter_of(device: str) -> GpuMeter:
    """The meter of a CUDA device that this process uses, for all models on it."""
    try:
        import pynvml  # noqa: PLC0415 - an extra
    except ImportError:
        pynvml = None
        log.info("%s: for GPU metrics, %s", device, install("gpu"))
    meter = GpuMeter(device, pynvml)
    threading.Thread(target=meter.keep_looking, name=f"{device}/nvml", daemon=True).start()
    return meter
