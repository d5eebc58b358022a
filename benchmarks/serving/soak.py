"""Whether the service stays as it is under hours of everything; `make soak` runs it for minutes.

python -m benchmarks.serving.soak --seconds 600 --workers 2 --output soak.json --plot soak.png

Callers of all kinds of `callers` come at once. After the first third, in which caches fill, all
rest, and files are counted; they rest again at the end, and there must be no more. A line fitted
through the resident memory between the two must not rise by more than it may. No answer may
be one that its caller should not get, no process another than at the start, no line of the log
anything but JSON without an exception, and the end must be in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.common.process import Started, open_files, processes, resident, started
from benchmarks.serving.callers import IMAGES, KINDS, Kind, Service
from models.builtin import DEFAULT_SPEC
from service.cli.load.document import as_text
from service.cli.load.environment import machine, versions

MIB = 2**20
REST_SECONDS = 10.0  # at most, until what callers left behind is gone
END_SECONDS = 60.0
# A deadline passes where the machine is busy with something else, which is no fault of the service.
ENVIRONMENT = {"RESNET_SERVE_LOG_FORMAT": "json", "RESNET_SERVE_REQUEST_TIMEOUT_MS": "110000"}
GROWTH_SHARE, GROWTH_MIB = 0.05, 20.0  # of all processes' memory together: what a run may add


@dataclass(frozen=True, slots=True)
class Plan:
    """`callers` at a time, for `seconds`; `every` so many a sample is taken."""

    seconds: float
    workers: int = 1
    callers: int = 12
    model: str = DEFAULT_SPEC
    every: float = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """At `seconds` since the start: resident bytes and open files by process."""

    seconds: float
    memory: dict[int, int]
    files: dict[int, int]


class Soak:
    def __init__(self, plan: Plan, service: Started) -> None:
        parts = urlsplit(service.url)
        assert parts.hostname
        assert parts.port
        self.plan = plan
        self.pids = processes(service.pid)
        self.samples: list[Sample] = []
        self.answers: Counter[tuple[str, str]] = Counter()  # by kind of caller, status or error
        self._at = Service(parts.hostname, parts.port)
        self._began = time.monotonic()

    async def run(self) -> tuple[Sample, Sample]:
        """What the processes held at rest, after the first third and at the end."""
        third = self.plan.seconds / 3
        rests: list[Sample] = []
        for seconds in (third, 2 * third):
            until = time.monotonic() + seconds
            sampling = asyncio.create_task(self._sample())
            await asyncio.gather(*(self._call(seed, until) for seed in range(self.plan.callers)))
            sampling.cancel()
            rests.append(await self._rest(rests[0] if rests else None))
        return rests[0], rests[1]

    async def _call(self, seed: int, until: float) -> None:
        draw = random.Random(f"{seed} {until > self._began + self.plan.seconds / 2}")
        shares = [kind.share for kind in KINDS]
        while time.monotonic() < until:
            (kind,) = draw.choices(KINDS, shares)
            name = kind.call.__name__
            try:
                statuses = await kind.call(self._at, draw)
                for what in map(str, statuses) if statuses else ("left",):
                    self.answers[name, what] += 1
            except (OSError, ValueError) as error:
                # Who leaves may be told that the other end has left, too.
                self.answers[name, repr(error) if kind.statuses else "left"] += 1

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self.plan.every)
            self.samples.append(self._taken())
            self._show()

    def _taken(self) -> Sample:
        return Sample(
            round(time.monotonic() - self._began, 2),
            {pid: resident(pid) for pid in self.pids},
            {pid: open_files(pid) for pid in self.pids},
        )

    async def _rest(self, before: Sample | None) -> Sample:
        until = time.monotonic() + REST_SECONDS
        await asyncio.sleep(1.0)
        taken = self._taken()
        while before and more_files(before, taken) and time.monotonic() < until:
            await asyncio.sleep(0.2)
            taken = self._taken()
        return taken

    def _show(self) -> None:
        last = self.samples[-1]
        text = (
            f"{last.seconds:6.0f} of {self.plan.seconds:g} s  {self.answers.total():8,} answers  "
            f"{sum(last.memory.values()) / MIB:7.1f} MiB  {sum(last.files.values()):4} files"
        )
        end = "\r" if sys.stderr.isatty() else "\n"
        print(text, end=end, file=sys.stderr, flush=True)


def more_files(before: Sample, after: Sample) -> dict[int, int]:
    """How many more each process has that has more."""
    rise = {pid: after.files[pid] - count for pid, count in before.files.items()}
    return {pid: more for pid, more in rise.items() if more > 0}


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Of a line fitted through all processes' memory: bytes at its start, and how many it rises."""
    seconds = np.asarray([sample.seconds for sample in samples])
    total = np.asarray([float(sum(sample.memory.values())) for sample in samples])
    slope, start = np.polyfit(seconds - seconds[0], total, 1)
    return float(start), float(slope * (seconds[-1] - seconds[0]))


def faults_of_answers(answers: Counter[tuple[str, str]], kinds: Iterable[Kind]) -> list[str]:
    allowed = {kind.call.__name__: set(map(str, kind.statuses)) or {"left"} for kind in kinds}
    return [
        f"{count} x {what} for a caller who {name.replace('_', ' ')}"
        for (name, what), count in answers.items()
        if what not in allowed[name]
    ]


def faults_of_log(lines: Iterable[str]) -> list[str]:
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            found.append(f"a line of the log is no JSON: {line.strip()}")
            continue
        if "exception" in record or record["level"] in {"ERROR", "CRITICAL"}:
            found.append(f"the log tells of an error: {record['message']}")
    return found


def measure(plan: Plan) -> dict[str, Any]:
    """What a soak found, for JSON; `faults` is empty if the service stayed as it was."""
    arguments = ["--model", plan.model, "--workers", str(plan.workers)]
    with (
        tempfile.TemporaryDirectory() as cache,
        started(arguments, IMAGES[0], Path(cache), **ENVIRONMENT) as service,
    ):
        soak = Soak(plan, service)
        names = {pid: name_of(pid) for pid in soak.pids}
        before, after = asyncio.run(soak.run())
        now = processes(service.pid)
        service.process.send_signal(signal.SIGTERM)
        status = service.process.wait(END_SECONDS)
    counted = [sample for sample in soak.samples if sample.seconds > before.seconds]
    start, rise = growth(counted)
    faults = faults_of_answers(soak.answers, KINDS) + faults_of_log(service.log)
    for pid, more in more_files(before, after).items():
        faults.append(f"{names[pid]} has {more} more files than after the first third")
    if rise > min(GROWTH_SHARE * start, GROWTH_MIB * MIB):
        faults.append(f"memory grew by {rise / MIB:.1f} MiB from {start / MIB:.1f}")
    if now != soak.pids:
        faults.append(f"the processes were {soak.pids}, and are {now}")
    if status:
        faults.append(f"the service ended with status {status}")
    return {
        "model": plan.model,
        "workers": plan.workers,
        "callers": plan.callers,
        "seconds": plan.seconds,
        "machine": machine(),
        "versions": versions(),
        "faults": faults,
        "memory_mib": round(start / MIB, 1),
        "memory_growth_mib": round(rise / MIB, 2),
        "files_at_rest": [sum(rest.files.values()) for rest in (before, after)],
        "log_lines": len(service.log),
        "answers": _by_kind(soak.answers),
        "processes": list(names.values()),
        "seconds_of_samples": [sample.seconds for sample in soak.samples],
        "memory_mib_of_samples": [
            [round(sample.memory[pid] / MIB, 1) for sample in soak.samples] for pid in names
        ],
        "files_of_samples": [[sample.files[pid] for sample in soak.samples] for pid in names],
    }


def name_of(pid: int) -> str:
    """What a process is for."""
    words = Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")
    module = next((word for word in words if word.startswith("service.")), "service.cli")
    return f"{module.removeprefix('service.').replace('cli', 'main')} {pid}"


def _by_kind(answers: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (name, what), count in sorted(answers.items()):
        found.setdefault(name, {})[what] = count
    return found


def draw(figures: dict[str, Any], path: Path) -> None:
    """Writes a .png or .svg: memory and open files of each process."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from models.plotting import STYLE
    from service.cli.load.plot import COLOURS

    minutes = np.asarray(figures["seconds_of_samples"]) / 60
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, key, title in zip(
            panels,
            ("memory_mib_of_samples", "files_of_samples"),
            ("Resident memory, MiB", "Open files"),
            strict=True,
        ):
            for index, name in enumerate(figures["processes"]):
                axes.plot(minutes, figures[key][index], color=COLOURS[index], label=name)
            axes.axvspan(0, minutes[-1] / 3, color="#f3f3f3", zorder=0)
            axes.set_title(title)
            axes.set_xlabel("minutes")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--callers", type=int, default=12, help="at a time")
    parser.add_argument("--model", default=DEFAULT_SPEC, help="a SPEC")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--plot", type=Path, help="a .png or .svg file")
    given = parser.parse_args()
    figures = measure(Plan(given.seconds, given.workers, given.callers, given.model))
    given.output.write_text(as_text(figures), "utf-8")
    if given.plot:
        draw(figures, given.plot)
    total = sum(sum(by.values()) for by in figures["answers"].values())
    print(
        f"{total:,} answers in {given.seconds:g} s; memory {figures['memory_mib']:g} MiB "
        f"{figures['memory_growth_mib']:+g}; files {figures['files_at_rest']}; "
        f"{len(figures['faults'])} faults"
    )
    if figures["faults"]:
        raise SystemExit("\n".join(figures["faults"]))


if __name__ == "__main__":
    main()
