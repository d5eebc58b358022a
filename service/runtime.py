"""The process and its machine: CPUs, interpreter, open files, threads and tasks, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, MutableSet
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
FAILED_STATUS = 70  # sysexits.h: EX_SOFTWARE
# How long an engine that returns from native code waits for a busy loop to release the GIL, in
# seconds: 5 ms a batch by CPython's default. The cost depends on the load;
# benchmarks/results/switch_interval.json has a run in which drift hid most of it.
SWITCH_SECONDS = 100e-6
# Files with a control group's quota and period, by version of control groups.
QUOTA_FILES = {
    "cgroup2": ("cpu.max",),
    "cgroup": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
}
# And the file with its limit on memory.
MEMORY_FILES = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}


class _Mount(NamedTuple):
    """A mounted cgroup hierarchy: its version, the mount point, and the group mounted there."""

    version: str
    point: Path
    root: PurePosixPath


def cpu_time(proc: Path = Path("/proc/self")) -> float:
    """CPU seconds that this process may use per second: 1.5 under a quota of 150 %.

    This is the number of CPUs in its affinity mask, or the lowest quota of its control group and
    the groups above, if lower. `proc` describes the process.
    """
    quotas = (
        quota
        for mount in _mounts(proc)
        for folder in _groups(proc, mount)
        if (quota := _quota(folder, mount.version)) is not None
    )
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def cpus(proc: Path = Path("/proc/self")) -> int:
    """Threads that this process can keep busy: `cpu_time`, rounded up."""
    return max(1, math.ceil(cpu_time(proc)))


def spinning_threads() -> int:
    """Threads for a library whose threads spin while they wait for each other, as torch's do.

    One CPU is left to the rest of the process: while one thread has no CPU, the others spin. On two
    busy CPUs, a small batch took 150 ms with two threads instead of 5.
    """
    return max(1, cpus() - 1)


def memory_limit(proc: Path = Path("/proc/self")) -> float:
    """Bytes of memory that this process's control group may use, or all of the host, if fewer."""
    limits = (
        limit
        for mount in _mounts(proc, "memory")
        for folder in _groups(proc, mount, "memory")
        for line in _lines(folder / MEMORY_FILES[mount.version])
        if (limit := line.strip()).isdigit()  # not "max"
    )
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(min([host, *map(int, limits)]))


def open_files_share() -> float:
    """Open files and sockets of this process over its limit on them, 0 to 1; NaN: not known."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with os.scandir("/dev/fd") as files:
            count = sum(1 for _ in files) - 1  # without the one that lists them
    except OSError as error:
        return 1.0 if error.errno in (errno.EMFILE, errno.ENFILE) else math.nan
    return 0.0 if soft == resource.RLIM_INFINITY else count / soft


def _mounts(proc: Path, controller: str = "cpu") -> Iterator[_Mount]:
    """The hierarchies that may limit CPU time, or what another controller limits.

    The format is proc_pid_mountinfo(5): a hyphen ends the optional fields.
    """
    for line in _lines(proc / "mountinfo"):
        mount, _, file_system = line.partition(" - ")
        try:
            _, _, _, root, point, *_ = mount.split()
            version, *_, options = file_system.split()
        except ValueError:
            continue
        if version == "cgroup2" or (version == "cgroup" and controller in options.split(",")):
            yield _Mount(version, Path(point), PurePosixPath(root))


def _groups(proc: Path, mount: _Mount, controller: str = "cpu") -> Iterator[Path]:
    """Folders of the process's group and of the groups above, as far as they are visible here."""
    for line in _lines(proc / "cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_2 = mount.version == "cgroup2"
        ours = hierarchy == "0" if version_2 else controller in controllers.split(",")
        if not ours:
            continue
        group = PurePosixPath(path)
        # A container may see only its own group, mounted as if it were the root, while the path
        # is the host's, or leads outside the mount.
        inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else None
        if inside is None or ".." in inside.parts:
            inside = PurePosixPath()
        folder = mount.point / inside
        yield from (folder, *folder.parents[: len(inside.parts)])


def _quota(folder: Path, version: str) -> float | None:
    """CPU seconds per second that a group may use; None: no limit."""
    words = " ".join(" ".join(_lines(folder / name)) for name in QUOTA_FILES[version]).split()
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or the root, which has no such file.
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []


def tune_interpreter() -> None:
    """Prepares the interpreter; each serving process calls it before it serves."""
    sys.setswitchinterval(SWITCH_SECONDS)
    settle_memory()


def settle_memory() -> None:
    """Exempts existing objects from garbage collection; called after something large has loaded.

    A full collection visits every object of PyTorch, and stops all threads for 150 ms. Memory that
    loading freed goes back to the system: hundreds of megabytes, which malloc would keep.
    """
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # Not the GNU C library.
        ctypes.CDLL(None).malloc_trim(0)


def allow_files(count: int) -> int:
    """Raises the limit on open files to `count`, as far as the hard limit allows; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return count if soft == resource.RLIM_INFINITY else soft


async def in_daemon(work: Callable[[], T], threads: MutableSet[threading.Thread]) -> T:
    """The result of `work`, computed in a daemon thread, which is added to `threads`.

    The process can exit while it runs, unlike with asyncio's own threads. Cancelling stops the
    wait, not the work.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(deliver: Callable[[], None]) -> None:
        if not done.done():
            deliver()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            failure = error
            _call(loop, lambda: settle(lambda: done.set_exception(failure)))
        else:
            _call(loop, lambda: settle(lambda: done.set_result(result)))

    thread = threading.Thread(target=run, name="load", daemon=True)
    threads.add(thread)
    thread.start()
    return await done


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


class AwakeClock:
    """Seconds that a watcher is awake, which looks about every `interval` seconds.

    The time between two looks counts as two intervals at most. So a pause of the whole service
    (SIGSTOP, `docker pause`, a suspended machine) does not make what is watched look as if it hung.
    """

    def __init__(self, interval: float) -> None:
        self._most = 2 * interval
        self._looked = time.monotonic()
        self.seconds = 0.0  # at the latest look

    def look(self) -> float:
        """The seconds so far."""
        now = time.monotonic()
        self.seconds += min(now - self._looked, self._most)
        self._looked = now
        return self.seconds


def essential(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task without which the process is no use: if it fails, the process exits and says why.

    Nobody awaits such a task, so that its failure would go unnoticed.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_exit_if_failed)
    return task


def _exit_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s failed; exiting", task.get_name(), exc_info=error)
        exit_at_once(FAILED_STATUS)


def exit_at_once(status: int) -> NoReturn:
    """Exits without waiting for threads: one may be stuck in native code."""
    logging.shutdown()
    os._exit(status)
