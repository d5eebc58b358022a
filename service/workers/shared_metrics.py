"""Metrics of several processes: a scrape of any front end returns the sums of all.

Each process keeps its values in its own files, in a folder that all share. A dead process's
counters stay; its gauges are removed.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import threading
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
# Files in memory: they are mapped, and a write that finds the disk full would kill the process.
MEMORY = Path("/dev/shm")  # noqa: S108
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
FILE_BYTES = 2**16  # the initial size in prometheus_client


def new_folder(processes: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with room for the files of `processes`.

    Raises:
        ConfigError: neither memory nor disk has the space.
    """
    reasons = []
    for parent in (MEMORY, None):
        try:
            folder = tempfile.TemporaryDirectory(
                prefix="resnet-serve-", dir=parent, ignore_cleanup_errors=True
            )
        except OSError as error:
            reasons.append(error.strerror or str(error))
            continue
        try:
            reserve(Path(folder.name) / "room", processes * len(KINDS) * FILE_BYTES)
        except OSError as error:
            reasons.append(error.strerror or str(error))
            folder.cleanup()
            continue
        (Path(folder.name) / "room").unlink()
        return folder
    raise ConfigError(
        f"no space for the processes' shared files in {MEMORY} ({reasons[0]}) or in the folder for "
        f"temporary files ({reasons[1]}); free space in one of them, or set workers to 1"
    )


def reserve(path: Path, size: int) -> None:
    """Creates a file with `size` allocated bytes, or raises OSError."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


class SharedMetrics(Metrics):
    """This process's metrics, and the view of all processes'.

    `with_parent`: includes the resources of its parent, which has no metrics.
    """

    def __init__(self, folder: str, *, with_parent: bool = False) -> None:
        for kind in KINDS:
            reserve(Path(folder) / f"{kind}_{os.getpid()}.db", FILE_BYTES)
        self._watched: dict[Gauge, Callable[[], float]] = {}
        self._refreshing = threading.Lock()  # A scrape refreshes in a thread.
        super().__init__()
        self._folder = folder
        self._processes = [ProcessCollector(registry=None)]
        self._cpu_seconds = [0.0]
        if with_parent:
            parent = ProcessCollector(pid=os.getppid, registry=None)
            self._processes.append(parent)
            # An earlier child may have counted its usage so far.
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
        with self._refreshing:
            self._watched[gauge] = read

    def drop(self, gauge: Gauge, *labels: str) -> None:
        # A value in a file cannot be removed; NaN hides it.
        series = gauge.labels(*labels)
        with self._refreshing:
            self._watched.pop(series, None)
            series.set(math.nan)

    def _remove_gone(self) -> None:
        """Nothing: series in files cannot be removed, but `MergedCollector` hides them."""

    def refresh(self) -> None:
        """Writes the watched values, so that other processes can read them."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        for gauge, read in self._watched.items():
            gauge.set(read())
        usages = [samples(process) for process in self._processes]
        for name, gauge in self._machine.items():
            values = [usage[name] for usage in usages if name in usage]
            gauge.set(min(values) if name == START else sum(values))
        for index, usage in enumerate(usages):
            seconds = usage.get(CPU, 0.0)
            self._cpu.inc(max(0.0, seconds - self._cpu_seconds[index]))
            self._cpu_seconds[index] = seconds

    async def keep_fresh(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    def collected(self) -> CollectorRegistry:
        self.refresh()
        registry = CollectorRegistry()
        PlatformCollector(registry=registry)
        MergedCollector(registry, self._folder, self.ended)
        return registry


class MergedCollector(multiprocess.MultiProcessCollector):
    """All processes' values, but for the models that `ended` picks among all that have some."""

    def __init__(
        self, registry: CollectorRegistry, folder: str, ended: Callable[[set[str]], set[str]]
    ) -> None:
        self._ended = ended
        super().__init__(registry, folder)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        # A file that a process has just created is empty for a moment.
        files = [str(path) for path in Path(self._path).glob("*.db") if path.stat().st_size]
        merged: list[Metric] = [*self.merge(files)]  # type: ignore[no-untyped-call]
        names = {s.labels["model"] for each in merged for s in each.samples if "model" in s.labels}
        ended = self._ended(names)
        for metric in merged:
            metric.samples = [
                sample
                for sample in metric.samples
                if sample.labels.get("model") not in ended
                and not (metric.type == "gauge" and math.isnan(sample.value))
            ]
            yield metric


def samples(process: ProcessCollector) -> dict[str, float]:
    return {sample.name: sample.value for family in process.collect() for sample in family.samples}


def remove_gauges(folder: str, pid: int) -> None:
    """Removes a dead process's gauges; its counters stay."""
    multiprocess.mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
