"""Describes the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.stage import Figures, Options
from models import hardware
from service import runtime

PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "pydantic", "fastapi", "pytest")
# Fields to query from nvidia-smi.
QUERY = (
    "name,driver_version,power.limit,clocks.max.sm,clocks.sm,temperature.gpu,memory.used,"
    "pcie.link.gen.current,pcie.link.width.current"
)
COPIED_BYTES = 2**28
COPIES = 5


def facts(options: Options) -> Iterator[Figures]:
    """Versions, the device, and how fast it copies."""
    yield {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "processor": hardware.name("cpu"),
        "cpus": runtime.cpus(),
        "compilers": {name: bool(shutil.which(name)) for name in ("gcc", "g++", "nvcc")},
    }
    if not options.on_cpu:
        yield _device(options.device)
        yield _driver(options.device)
        yield _copies(options.device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver(device: str) -> Figures:
    """The output of nvidia-smi, which counts the devices in another order than CUDA."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"nvidia_smi": None}
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [program, f"--id={name}", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    values = [value.strip() for value in done.stdout.split(",")]
    names = QUERY.split(",")
    if done.returncode or len(values) != len(names):
        return {"nvidia_smi": (done.stdout + done.stderr).strip()[:200]}
    return {"nvidia_smi": dict(zip(names, values, strict=True))}


def _device(device: str) -> Figures:
    found = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "free_MiB": free >> 20,
        "total_MiB": total >> 20,
        "devices": torch.cuda.device_count(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _copies(device: str) -> Figures:
    """Between pinned memory and the device, in 1e9 bytes a second."""
    host = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    rates = {}
    for name, to, source in (
        ("to_device_GBps", on_device, host),
        ("to_host_GBps", host, on_device),
    ):
        shortest = float("inf")
        for _ in range(COPIES):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            to.copy_(source, non_blocking=True)
            torch.cuda.synchronize(device)
            shortest = min(shortest, time.perf_counter() - began)
        rates[name] = round(COPIED_BYTES / shortest / 1e9, 1)
    return rates
