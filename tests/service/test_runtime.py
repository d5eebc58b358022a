"""CPUs are counted where the quota is: in the process's own control group and all above it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import runtime
from service.config.variables import environment

V2 = "26 25 0:23 {root} {point} rw,nosuid - cgroup2 cgroup2 rw"
V1 = "26 25 0:23 {root} {point} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "27 25 0:24 / {point}/../memory rw - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


class Machine:
    """A process's description and its control groups, as files under a folder."""

    def __init__(self, folder: Path, mount: str, group: str, *, root: str = "/") -> None:
        self.proc, self.groups = folder / "proc", folder / "groups"
        self.proc.mkdir()
        self.groups.mkdir()
        line = mount.format(root=root, point=self.groups)
        (self.proc / "mountinfo").write_text(f"{OTHER.format(point=self.groups)}\n{line}\n")
        hierarchy = "0::" if mount is V2 else "4:cpu,cpuacct:"
        (self.proc / "cgroup").write_text(f"3:memory:/elsewhere\n{hierarchy}{group}\n")

    def limit(self, group: str, **files: str) -> Machine:
        folder = self.groups / group.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text + "\n")
        return self

    @property
    def cpu_time(self) -> float:
        return runtime.cpu_time(self.proc)


def test_a_quota_of_the_processs_own_group_counts(tmp_path: Path) -> None:
    """As systemd's CPUQuota=150% sets it."""
    machine = Machine(tmp_path, V2, "/system.slice/resnet-serve.service")
    machine.limit("/system.slice/resnet-serve.service", cpu__max="150000 100000")
    machine.limit("/system.slice", cpu__max="max 100000")
    assert machine.cpu_time == 1.5
    assert runtime.cpus(machine.proc) == 2


def test_a_quota_of_a_group_above_counts(tmp_path: Path) -> None:
    """As Slurm limits a job, of which the process is a step."""
    machine = Machine(tmp_path, V2, "/slurm/job_1/step_0/user")
    machine.limit("/slurm/job_1/step_0/user", cpu__max="max 100000")
    machine.limit("/slurm/job_1", cpu__max="200000 100000")
    assert machine.cpu_time == 2


def test_the_least_of_all_quotas_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V2, "/a/b")
    machine.limit("/a/b", cpu__max="300000 100000").limit("/a", cpu__max="50000 100000")
    assert machine.cpu_time == 0.5
    assert runtime.cpus(machine.proc) == 1


def test_a_quota_beyond_the_cpus_is_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V2, "/a").limit("/a", cpu__max="900000 100000")
    assert machine.cpu_time == 4


def test_version_1_has_two_files_and_minus_1_for_no_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1, "/docker/1/inner")
    machine.limit("/docker/1/inner", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    machine.limit("/docker/1", cpu__cfs_quota_us="125000", cpu__cfs_period_us="50000")
    assert machine.cpu_time == 2.5
    assert runtime.cpus(machine.proc) == 3


@pytest.mark.parametrize("mount", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("group", "root"),
    [
        ("/docker/1", "/docker/1"),  # --cgroupns=host: the path is the host's
        ("/", "/"),  # a namespace of its own
        ("/../../other", "/"),  # the group is outside of what the process sees
        ("/somewhere", "/docker/1"),  # and of what is mounted
    ],
)
def test_in_a_container_the_mounted_group_is_its_own(
    tmp_path: Path, mount: str, group: str, root: str
) -> None:
    machine = Machine(tmp_path, mount, group, root=root)
    quota = {"cpu__max": "50000 100000"}
    if mount is V1:
        quota = {"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"}
    assert machine.limit("/", **quota).cpu_time == 0.5


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense", "100000", "100000 0", "0 100000"])
def test_what_is_no_quota_limits_nothing(tmp_path: Path, text: str) -> None:
    assert Machine(tmp_path, V2, "/a").limit("/a", cpu__max=text).cpu_time == 4


def test_without_control_groups_all_cpus_count(tmp_path: Path) -> None:
    assert runtime.cpu_time(tmp_path) == 4


# One of these folders takes groups where the machine lets the tests make some.
REAL = {
    "v1": (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "tasks"),
    "v2": (Path("/sys/fs/cgroup"), "cpu.max", "cgroup.procs"),
}


@pytest.fixture(params=REAL)
def group(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path, str]]:
    """A group of the real machine, the file of its quota, and that of its processes."""
    root, quota, tasks = REAL[request.param]
    outer = root / f"resnet-serve-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        if not (outer / quota).exists():
            pytest.skip("groups here do not limit CPU time")
        yield inner, outer / quota, tasks
    finally:
        for folder in (inner, outer):
            folder.rmdir()


@pytest.mark.parametrize("percent", [50, 150])
def test_a_real_group_limits_the_processes_below_it(
    group: tuple[Path, Path, str], percent: int
) -> None:
    inner, quota, tasks = group
    # With the usual period of 100 ms.
    quota.write_text(str(percent * 1000))
    script = (
        f"import os; open({str(inner / tasks)!r}, 'w').write(str(os.getpid()))\n"
        "from service import runtime; print(runtime.cpu_time(), runtime.cpus())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    ).stdout.split()
    expected = min(percent / 100, os.cpu_count() or 1)
    assert [float(said[0]), int(said[1])] == [expected, math.ceil(expected)]


def test_memory_is_limited_by_the_least_of_all_groups(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V2, "/system.slice/resnet-serve.service")
    host = runtime.memory_limit(machine.proc)
    assert host == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine.limit("/system.slice", memory__max=str(2**26))
    machine.limit("/system.slice/resnet-serve.service", memory__max="max")
    assert runtime.memory_limit(machine.proc) == 2**26
    machine.limit("/system.slice/resnet-serve.service", memory__max=str(2**25))
    assert runtime.memory_limit(machine.proc) == 2**25


def test_version_1_has_a_hierarchy_of_its_own_for_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1, "/job")
    machine.limit("/job", memory__limit_in_bytes="1")  # This is the hierarchy of the CPUs.
    machine.limit("../memory/elsewhere", memory__limit_in_bytes=str(2**26))
    assert runtime.memory_limit(machine.proc) == 2**26


def test_the_share_of_open_files_is_that_of_the_limit_in_force() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after, starved = map(float, done.stdout.split())
    assert 0 < before < 0.2
    assert after - before == pytest.approx(0.5)
    assert starved == 1


OPENING = """
import resource
from service.runtime import open_files_share

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
before = open_files_share()
files = [open("/dev/null") for _ in range(64)]
after = open_files_share()
try:
    while True:
        files.append(open("/dev/null"))
except OSError:
    print(before, after, open_files_share())
"""


def test_a_pause_of_whoever_watches_hardly_counts() -> None:
    clock = runtime.AwakeClock(0.05)
    clock.look()
    for _ in range(5):
        time.sleep(0.05)
        clock.look()
    awake = clock.seconds
    assert awake >= 0.25
    time.sleep(1)
    assert clock.look() == pytest.approx(awake + 0.1)


ENDING = """
import asyncio
from service import runtime

async def fail():
    raise KeyError("a bug")

async def main():
    task = runtime.essential(asyncio.sleep(0), "what ends well")
    await task
    other = runtime.essential(asyncio.sleep(60), "what is cancelled")
    await asyncio.sleep(0)
    other.cancel()
    await asyncio.sleep(0.1)
    task = runtime.essential(fail(), "the reloading")
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_task_that_must_not_fail_ends_the_process_and_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == runtime.FAILED_STATUS
    assert done.stderr.startswith("the reloading failed; exiting")
    assert "KeyError: 'a bug'" in done.stderr
