"""Metrics of several processes: a scrape of any front end returns the sums of all.

Each process keeps its values in its own files, in a folder that all share. The files carry the name
of its role: the successor of a dead process continues its counters, so that files do not grow in
number. A dead process's gauges are removed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    PlatformCollector,
    ProcessCollector,
    multiprocess,
    values,
)
from prometheus_client.mmap_dict import MmapedDict

from models import files
from service.errors import ConfigError
from service.metrics import USUAL, Metrics, Objectives

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.25
START, CPU = "process_start_time_seconds", "process_cpu_seconds_total"
# Files in memory: they are mapped, and a write that finds the disk full would kill the process.
MEMORY = Path("/dev/shm")  # noqa: S108
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
FILE_BYTES = 2**16  # the initial size in prometheus_client


def engine_role(index: int) -> str:
    return f"engine-{index + 1}"


def front_end_role(index: int) -> str:
    return f"front-{index + 1}"


@contextmanager
def new_folder(processes: int) -> Iterator[Path]:
    """A folder with room for the files of `processes`.

    Raises:
        ConfigError: neither memory nor disk has the space.
    """
    reasons = []
    with ExitStack() as stack:
        for parent in (MEMORY, None):
            try:
                folder = stack.enter_context(files.scratch("workers", parent))
                reserve(folder / "room", processes * len(KINDS) * FILE_BYTES)
                break
            except OSError as error:
                reasons.append(error.strerror or str(error))
                stack.close()
        else:
            raise ConfigError(
                f"no space for the processes' shared files in {MEMORY} ({reasons[0]}) or in the "
                f"folder for temporary files ({reasons[1]}); free space in one of them, or set "
                "workers to 1"
            )
        (folder / "room").unlink()
        yield folder


def reserve(path: Path, size: int) -> None:
    """Creates a file with `size` allocated bytes, or raises OSError."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


class SharedMetrics(Metrics):
    """This process's metrics, and the view of all processes'.

    `role` is unique among living processes, without an underscore. `with_parent`: includes the
    resources of its parent, which has no metrics.
    """

    def __init__(
        self,
        folder: str,
        role: str,
        objectives: Objectives = USUAL,
        *,
        with_parent: bool = False,
    ) -> None:
        for kind in KINDS:
            _prepare(Path(folder) / f"{kind}_{role}.db")
        # By default, it would name files by process number.
        values.ValueClass = values.MultiProcessValue(lambda: role)  # type: ignore[no-untyped-call]
        self._watched: dict[Gauge, Callable[[], float]] = {}
        self._refreshing = threading.Lock()  # A scrape refreshes in a thread.
        super().__init__(objectives)
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
            # Without a free file descriptor, nothing is known.
            if found := [usage[name] for usage in usages if name in usage]:
                gauge.set(min(found) if name == START else sum(found))
        for index, usage in enumerate(usages):
            seconds = usage.get(CPU, self._cpu_seconds[index])
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
        files = [str(path) for path in Path(self._path).glob("*.db") if _has_values(path)]
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


def _prepare(path: Path) -> None:
    """Reserves a file's space; what a predecessor counted stays, unless it cannot be read."""
    try:
        if _has_values(path):
            list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, struct.error) as error:  # Killed while it wrote.
        log.warning("%s is corrupt; its counters start again: %s", path.name, error)
        path.unlink(missing_ok=True)
    reserve(path, FILE_BYTES)


def _has_values(path: Path) -> bool:
    """False for a moment after a file was created, and if it has just been removed."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def remove_gauges(folder: str, role: str) -> None:
    """Removes a dead process's gauges; its counters stay for its successor."""
    for kind in KINDS:  # Not listed: that would need a free file descriptor.
        if kind.startswith("gauge"):
            (Path(folder) / f"{kind}_{role}.db").unlink(missing_ok=True)
