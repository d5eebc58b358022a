"""Checks on one GPU, in less than four minutes, what no CPU can show.

python -m benchmarks.gpu_check --out gpu_check.jsonl

Each stage is a process of its own with its own time limit, so that a failure of the device ends one
stage and not the check. README.md beside this file says what each finds, and what to carry to a
machine without a network. `--device cpu --model random:resnet20 --seconds 0.1` goes through the
same code without a GPU, to try the check itself.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from benchmarks.gpu_check import goals
from benchmarks.gpu_check.stage import Options
from benchmarks.gpu_check.stages import STAGES, Stage
from benchmarks.gpu_check.supervise import Findings, Supervisor

# A stage is not begun with less, in seconds: torch alone takes most of it to import.
LEAST_SECONDS = 5.0
USUAL_BATCH = 128  # if no engine was measured


@dataclass(frozen=True, slots=True)
class Plan:
    """`stages` run in their order within `budget` seconds."""

    stages: Sequence[Stage]
    options: Options
    budget: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a stage failed or a goal was missed."""
    # A stage must not outlive the check, however that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as scratch:
        plan, out = arguments_of(arguments, Path(scratch))
        findings = Findings(out)
        try:
            check(plan, findings)
        finally:
            findings.close()
    ends = {row.get("ended") for row in findings.records}
    missed = any(row.get("met") is False for row in findings.records)
    return int(missed or bool(ends & {"failed", "too late"}))


def check(plan: Plan, findings: Findings) -> None:
    """Runs all stages, and tells which goals were met."""

    def command(stage: Stage, stage_until: float) -> list[str]:
        batch = min(goals.best_batch(findings.records) or USUAL_BATCH, plan.options.max_batch)
        options = replace(plan.options, batch=batch).as_json()
        module = "benchmarks.gpu_check.runner"
        return [sys.executable, "-m", module, stage.name, options, str(stage_until)]

    until = time.monotonic() + plan.budget
    supervisor = Supervisor(findings, command)

    def run(stage: Stage) -> None:
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            findings.tell(stage.name, {"skipped": "no time is left", "ended": "skipped"})
        else:
            supervisor.run(stage, min(stage.limit, left))

    with ThreadPoolExecutor(len(plan.stages)) as pool:
        try:
            for beside, group in groupby(plan.stages, lambda stage: stage.beside):
                if beside:
                    list(pool.map(run, group))
                    continue
                for stage in group:
                    run(stage)
        finally:
            supervisor.stop()
    for judged in goals.summary(findings.records):
        findings.tell("summary", judged)


def arguments_of(arguments: Sequence[str] | None, scratch: Path) -> tuple[Plan, Path]:
    """The plan, and the file for its findings.

    Raises:
        SystemExit: an argument is wrong; the reason is on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), metavar="FILE")
    parser.add_argument("--budget", type=float, default=220, metavar="SECONDS", help="in all")
    parser.add_argument("--only", type=_stages, metavar="STAGE,...", help=", ".join(STAGES))
    parser.add_argument(
        "--limit", type=_limit, action="append", default=[], metavar="STAGE=SECONDS"
    )
    parser.add_argument("--device", type=_device, default="cuda:0", help="cpu or cuda:N")
    parser.add_argument("--model", default="random:resnet50", metavar="SPEC")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--seconds", type=float, default=0.7, help="for each measurement")
    parser.add_argument("--max-batch", type=int, default=256)
    given = parser.parse_args(arguments)
    if not given.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {given.out.absolute().parent}")
    chosen = given.only or [
        stage for stage in STAGES.values() if not (given.device == "cpu" and stage.gpu)
    ]
    limits = dict(given.limit)
    stages = [replace(stage, limit=limits.get(stage.name, stage.limit)) for stage in chosen]
    options = Options(
        model=given.model,
        device=given.device,
        precision=given.precision,
        seconds=given.seconds,
        max_batch=given.max_batch,
        batch=USUAL_BATCH,
        scratch=scratch,
    )
    return Plan(stages, options, given.budget), given.out


def _stages(text: str) -> list[Stage]:
    return [_stage(name) for name in text.split(",")]


def _stage(name: str) -> Stage:
    if name not in STAGES:
        raise argparse.ArgumentTypeError(f"{name}: must be of {', '.join(STAGES)}")
    return STAGES[name]


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    try:
        return _stage(name).name, float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be STAGE=SECONDS") from None


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda:\d+", text):
        raise argparse.ArgumentTypeError(f"{text}: must be cpu or cuda:N")
    return text


if __name__ == "__main__":
    sys.exit(main())
