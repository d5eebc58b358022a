"""Metrics of several processes as one: whoever is scraped answers with the sums of all.

Each process keeps its values in files of its own, in a folder that all share. A dead one's
counters stay, its gauges go.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    PlatformCollector,
    ProcessCollector,
    multiprocess,
)

from service.errors import ConfigError
from service.metrics import Metrics

REFRESH_SECONDS = 0.25
START, CPU = "process_start_time_seconds", "process_cpu_seconds_total"
# Where files are memory; they are mapped, and a write for which a disk has no room kills a process.
MEMORY = Path("/dev/shm")  # noqa: S108
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
FILE_BYTES = 2**16  # what prometheus_client begins with


def new_folder(processes: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with room for the files of so many processes.

    Raises:
        ConfigError: there is none, in memory or on disk.
    """
    reasons = []
    for place in (MEMORY, None):
        try:
            made = tempfile.TemporaryDirectory(
                prefix="resnet-serve-", dir=place, ignore_cleanup_errors=True
            )
        except OSError as error:
            reasons.append(error.strerror or str(error))
            continue
        try:
            reserve(Path(made.name) / "room", processes * len(KINDS) * FILE_BYTES)
        except OSError as error:
            reasons.append(error.strerror or str(error))
            made.cleanup()
            continue
        (Path(made.name) / "room").unlink()
        return made
    raise ConfigError(
        f"no space for the processes' shared files in {MEMORY} ({reasons[0]}) or in the folder for "
        f"temporary files ({reasons[1]}); free space in one of them, or set workers to 1"
    )


def reserve(path: Path, size: int) -> None:
    """Makes a file with `size` bytes that are really there, or raises OSError."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


class SharedMetrics(Metrics):
    """This process's part, and the view of the whole.

    `with_parent`: also counts what its parent, which has no metrics, uses of the machine.
    """

    def __init__(self, folder: str, *, with_parent: bool = False) -> None:
        for kind in KINDS:
            reserve(Path(folder) / f"{kind}_{os.getpid()}.db", FILE_BYTES)
        self._watched: dict[Gauge, Callable[[], float]] = {}
        super().__init__()
        self._folder = folder
        self._processes = [ProcessCollector(registry=None)]
        self._cpu_seconds = [0.0]
        if with_parent:
            parent = ProcessCollector(pid=os.getppid, registry=None)
            self._processes.append(parent)
            # An earlier child may have counted what it used until now.
            self._cpu_seconds.append(samples(parent).get(CPU, 0.0))
        self._cpu = Counter(CPU, "Total user and system CPU time spent in seconds", registry=None)
        self._machine = {
            family.name: Gauge(
                family.name,
                family.documentation,
                multiprocess_mode="livemin" if family.name == START else "livesum",
                registry=None,
            )
            for family in self._processes[0].collect()
            if family.type == "gauge"
        }

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        self._watched[gauge] = read

    def drop(self, gauge: Gauge, *labels: str) -> None:
        # What a file holds stays there; a gauge that is not a number is not shown.
        series = gauge.labels(*labels)
        self._watched.pop(series, None)
        series.set(math.nan)

    def refresh(self) -> None:
        """Writes what is otherwise read when it is asked for, so that other processes can ask."""
        for gauge, read in self._watched.items():
            gauge.set(read())
        found = [samples(process) for process in self._processes]
        for name, gauge in self._machine.items():
            values = [each[name] for each in found if name in each]
            gauge.set(min(values) if name == START else sum(values))
        for index, each in enumerate(found):
            seconds = each.get(CPU, 0.0)
            self._cpu.inc(max(0.0, seconds - self._cpu_seconds[index]))
            self._cpu_seconds[index] = seconds

    async def keep_fresh(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    def whole(self) -> CollectorRegistry:
        self.refresh()
        registry = CollectorRegistry()
        PlatformCollector(registry=registry)
        Whole(registry, self._folder)  # type: ignore[no-untyped-call]
        return registry


class Whole(multiprocess.MultiProcessCollector):
    """All processes' values; a file is empty for a moment when a process has just made it."""

    def collect(self) -> Iterable[Metric]:
        files = [str(path) for path in Path(self._path).glob("*.db") if path.stat().st_size]
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        for metric in merged:
            if metric.type == "gauge":
                metric.samples = [each for each in metric.samples if not math.isnan(each.value)]
            yield metric


def samples(process: ProcessCollector) -> dict[str, float]:
    return {each.name: each.value for family in process.collect() for each in family.samples}


def forget(folder: str, pid: int) -> None:
    """Removes a dead process's gauges; its counters stay."""
    multiprocess.mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
