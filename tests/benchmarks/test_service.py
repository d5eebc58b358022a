"""The whole benchmark, so short that its figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import images
from benchmarks.common.process import cpu_seconds, peak_memory, started
from benchmarks.serving import service
from service.cli.load.document import as_text


@pytest.mark.slow
def test_one_run_has_every_figure_and_a_table(tmp_path: Path) -> None:
    plan = service.Plan(
        model="random:resnet20",
        engine="eager",
        precision="fp32",
        images=images.small(32, 4),
        seconds=0.2,
        ceiling_seconds=0.02,
        warm_up=0.1,
    )
    found, reports = service.measure(plan)
    figures = json.loads(as_text(found))
    assert [run["mode"] for run in figures["runs"]] == ["closed"] * 4 + ["open"] * 3
    best = figures["images_per_second"]
    assert best == max(report.images_per_second for report in reports[:4]) > 0
    assert reports[4].run.rate == pytest.approx(0.8 * best, abs=0.1)
    assert reports[5].run.rate == pytest.approx(2 * best, abs=0.1)
    assert reports[6].run.rate == reports[5].run.rate
    assert reports[5].goodput is not None
    assert set(figures["ceilings"]["engine"]) == {"1", "2", "4", "8", "16", "32"}
    assert figures["share_of_ceiling"]["engine"] == pytest.approx(
        best / max(figures["ceilings"]["engine"].values()), abs=1e-3
    )
    assert figures["start_seconds"]["first"] > 0
    assert figures["peak_memory_mib"] > 50
    printed = service.table(figures)
    assert "answered in time" in printed
    assert len(printed.splitlines()) < 30


def test_a_service_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    arguments = ["--model", "builtin:nothing"]
    with (
        pytest.raises(SystemExit, match=r"did not start: .*no such embedded model"),
        started(arguments, b"", tmp_path),
    ):
        pass


def test_cpu_time_is_that_of_all_processes_and_of_main_threads_alone() -> None:
    code = (
        "import threading, time\n"
        "def busy(seconds):\n"
        "    while time.thread_time() < seconds: pass\n"
        "thread = threading.Thread(target=busy, args=(0.5,))\n"
        "thread.start(); thread.join(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        whole, main = (sum(cpu_seconds(child.pid, main_threads=alone)) for alone in (False, True))
        child.communicate("\n")
    # The counters tick in hundredths of a second.
    assert whole - main > 0.4
    assert cpu_seconds(child.pid) == (0.0, 0.0)


def test_memory_counts_the_children() -> None:
    alone = peak_memory(os.getpid())
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        child_alone = peak_memory(child.pid)  # first: it is still growing
        assert peak_memory(os.getpid()) >= alone + child_alone > alone
        child.communicate(b"\n")
    assert peak_memory(child.pid) == 0
