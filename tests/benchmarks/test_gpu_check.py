"""The GPU check: on a CPU, on a simulated GPU, and with stages that fail."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common.process import processes
from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check import capture, neighbours, poison, repository_tests, sanitizer, trained
from benchmarks.gpu_check.goals import GOALS, best_batch, summary
from benchmarks.gpu_check.runner import findings
from benchmarks.gpu_check.stage import Options
from benchmarks.gpu_check.stages import STAGES, Stage
from benchmarks.gpu_check.supervise import Findings, Supervisor
from models import bundle, bundling
from models.preprocess import CIFAR
from tests.support.cuda.failures import ILLEGAL_ACCESS
from tests.support.cuda.runtime import FakeCuda
from tests.support.engine_checks import TINY
from tests.support.fake_cuda import fake_cuda

ROOT = Path(__file__).parents[2]
Records = list[dict[str, Any]]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network that takes no time; it stands in for those that stages choose, too."""
    path = str(tmp_path / "tiny.safetensors")
    bundle.write(bundling.untrained(TINY, "tiny", CIFAR), path)
    monkeypatch.setattr(trained, "MODEL", path)
    monkeypatch.setattr(sanitizer, "MODEL", path)
    monkeypatch.setattr(neighbours, "OTHER", path)
    monkeypatch.setattr(capture, "STARTS", 1)
    return path


def options(spec: str, folder: Path, device: str = "cpu") -> Options:
    return Options(
        model=spec,
        device=device,
        precision="fp32" if device == "cpu" else "bf16",
        seconds=0.02,
        max_batch=4,
        batch=4,
        scratch=folder,
    )


def found(name: str, spec: str, folder: Path, device: str = "cpu") -> Records:
    """What a stage finds, as it is written."""
    records: Records = json.loads(json.dumps(list(findings(name, options(spec, folder, device)))))
    return records


def merged(records: Records) -> dict[str, Any]:
    return {name: value for record in records for name, value in record.items()}


def test_it_goes_through_on_a_cpu_and_writes_each_finding_as_a_line(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    flags = ["--device=cpu", "--model=random:resnet20", "--seconds=0.02", "--max-batch=8"]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *flags, "--only=facts,eager"]
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["stage"] for row in records] == (
        ["facts"] * 2 + ["eager"] * (len(records) - len(GOALS) - 2) + ["summary"] * len(GOALS)
    )
    assert [row["ended"] for row in records if "ended" in row] == ["ok", "ok"]
    speeds = [row for row in records if "images_s" in row]
    assert speeds[0]["size"] == 1
    assert min(row["images_s"] for row in speeds) > 0
    assert {row["met"] for row in records if row["stage"] == "summary"} == {None}
    assert len(done.stdout.splitlines()) == len(records)


def checked(
    stages: list[Stage], programs: dict[str, str], tmp_path: Path, budget: float = 60
) -> Records:
    """What is told of stages that are short programs."""
    told = Findings(tmp_path / "found.jsonl")

    def command(stage: Stage, until: float) -> list[str]:
        return [sys.executable, "-c", programs[stage.name]]

    supervisor = Supervisor(told, command)
    for stage in stages:
        supervisor.run(stage, min(stage.limit, budget))
    told.close()
    written = (tmp_path / "found.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in written] == told.records
    return told.records


def test_a_stage_that_crashes_or_hangs_is_a_line_and_the_others_run(tmp_path: Path) -> None:
    hangs = (
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(json.dumps({'child': child.pid}), flush=True)\n"
        "print('somewhere', file=sys.stderr, flush=True)\n"
        "time.sleep(600)"
    )
    programs = {
        "crashes": "import os; print('{\"before\": 1}', flush=True); os.abort()",
        "raises": "print('a library says this'); print('[1]'); raise ValueError('of no use')",
        "hangs": hangs,
        "works": "print('{\"images_s\": 5}')",
        "skips": 'print(\'{"skipped": "no compiler"}\')',
    }
    stages = [Stage(name, "", limit=1.5 if name == "hangs" else 30) for name in programs]
    records = checked(stages, programs, tmp_path)
    ends = {row["stage"]: row for row in records if "ended" in row}
    assert {name: row["ended"] for name, row in ends.items()} == {
        "crashes": "failed",
        "raises": "failed",
        "hangs": "too late",
        "works": "ok",
        "skips": "skipped",
    }
    assert {"stage": "crashes", "before": 1} in records
    assert ends["raises"]["stderr"][-1] == "ValueError: of no use\n"
    assert "somewhere\n" in ends["hangs"]["stderr"]
    assert {"stage": "works", "images_s": 5} in records
    # What a stage started has ended with it.
    (child,) = (row["child"] for row in records if "child" in row)
    assert has_ended(child)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, but perhaps for what its parent may ask of it."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text("utf-8")


def test_a_check_that_is_ended_ends_its_stages(tmp_path: Path) -> None:
    flags = ["--device=cpu", "--model=random:resnet20", "--seconds=600", "--only=eager"]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *flags, f"--out={tmp_path / 'found'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("eager")  # The engine has started.
        _, stage = processes(process.pid)
        process.terminate()
        assert process.wait(30) == 143
    assert has_ended(stage)


def test_stages_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    told = Findings(tmp_path / "found.jsonl")
    stages = [STAGES["facts"], STAGES["capture"], STAGES["neighbours"]]
    check.check(check.Plan(stages, options("random:resnet20", tmp_path), budget=1), told)
    told.close()
    skipped = [row for row in told.records if row["stage"] != "summary"]
    assert [row["stage"] for row in skipped] == ["facts", "capture", "neighbours"]
    assert all("no time" in row["skipped"] for row in skipped)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "facts,speed"], "speed: must be of facts"),
        (["--limit", "facts"], "facts: must be STAGE=SECONDS"),
        (["--device", "gpu"], "gpu: must be cpu or cuda:N"),
        (["--out", "nowhere/found.jsonl"], "there is no folder"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check.arguments_of(arguments, tmp_path)
    assert reason in capsys.readouterr().err


def test_arguments_choose_stages_and_limits(tmp_path: Path) -> None:
    plan, out = check.arguments_of(["--only=http,facts", "--limit=http=9"], tmp_path)
    assert [(stage.name, stage.limit) for stage in plan.stages] == [("http", 9), ("facts", 25)]
    assert out == Path("gpu_check.jsonl")
    assert [stage.name for stage in check.arguments_of([], tmp_path)[0].stages] == list(STAGES)
    on_cpu, _ = check.arguments_of(["--device=cpu"], tmp_path)
    assert {stage.name for stage in on_cpu.stages} == {
        name for name, stage in STAGES.items() if not stage.gpu
    }


@pytest.mark.parametrize("name", ["capture", "trained", "neighbours"])
def test_without_a_gpu_the_plain_engine_stands_in(name: str, spec: str, tmp_path: Path) -> None:
    records = found(name, spec, tmp_path)
    if name == "trained":
        assert [(row["kind"], row["agreement"]) for row in records] == [("eager", 1.0)]
    else:
        judged = {row["goal"]: row["met"] for row in summary(_of(name, records))}
        assert [met for met in judged.values() if met is not None] == [True]


def test_jpegs_are_decoded_on_the_cpus(tmp_path: Path) -> None:
    records = found("jpeg", "random:resnet20", tmp_path)
    assert records[0]["threads"] == 1
    assert min(row["images_s"] for row in records) > 0


def test_the_compiled_network_is_measured_at_its_batch(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Records = []

    def uncompiled(network: Any, **how: Any) -> Any:
        asked.append(how)
        return network

    monkeypatch.setattr(torch, "compile", uncompiled)
    records = found("compile", spec, tmp_path)
    assert asked == [{"mode": "max-autotune", "dynamic": False}]
    assert [row["size"] for row in records] == [4, 4]
    assert records[-1]["images_s"] > 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TORCH_CUDA_SANITIZER", "1")  # Our own judge stands in for it.
    # Measuring stops at no size: the simulated device is slower than any that gains by batches.
    monkeypatch.setattr("service.engines.buckets.RELIABLE", 100.0)
    monkeypatch.setattr("service.engines.buckets.LONGEST", 100.0)
    monkeypatch.setattr("service.engines.buckets.LONGEST_SAMPLE", 1e-6)
    with fake_cuda() as device:
        yield device


def test_a_gpu_that_is_right_meets_the_goals_for_what_must_never_happen(
    fake: FakeCuda, spec: str, tmp_path: Path
) -> None:
    records: Records = []
    for name in ("facts", "fused", "eager", "convolutions", "sanitizer", "capture", "neighbours"):
        records += _of(name, found(name, spec, tmp_path, "cuda:0"))
    assert not fake.races
    judged = {row["goal"]: row["met"] for row in summary(records)}
    for goal in ("serving allocates nothing", "no races", "beside a serving", "two models"):
        assert [met for name, met in judged.items() if goal in name] == [True]
    fused = merged([row for row in records if row["stage"] == "fused"])
    lanes = [difference for lanes in fused["differences"].values() for difference in lanes]
    assert len(lanes) == 2 * len(fused["bucket_ms"]) == fused["graphs"] - 2
    assert max(lanes) < 0.1
    assert fused["agreement"] > 0.9
    assert fused["details"] > 0
    assert max(fused["detail_difference"], fused["fraction_difference"]) < 0.1
    assert fused["device_MiB"] >= 0
    convolutions = [row for row in records if "convolution" in row]
    assert sum(row["count"] for row in convolutions) == 5
    plain = [row for row in convolutions if "not_fused" in row]
    assert [row["convolution"].partition("->")[0] for row in plain] == ["3"]
    assert max(row["difference"] for row in convolutions if row not in plain) < 0.02


def test_too_little_memory_on_a_gpu(fake: FakeCuda, spec: str, tmp_path: Path) -> None:
    start, serving = found("memory", spec, tmp_path, "cuda:0")
    assert (start["answered"], start["engine"]) == (64, "fused")
    assert (serving["answered"], serving["state"]) == (128, "ready")


def test_a_lost_gpu_is_known_for_good(
    fake: FakeCuda, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str) -> None:
        fake.lose(code=ILLEGAL_ACCESS)
        torch.cuda.synchronize(device)

    monkeypatch.setattr(poison, "_fail_an_assertion", fail)
    records = _of("poison", found("poison", spec, tmp_path, "cuda:0"))
    assert merged(records)["outcome"].startswith("refused")
    assert {row["goal"]: row["met"] for row in summary(records)}[
        "a failed assertion is known for good"
    ]


def test_without_torchs_sanitizer_its_stage_says_so(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_SANITIZER", raising=False)
    assert found("sanitizer", spec, tmp_path) == [{"skipped": "TORCH_CUDA_SANITIZER is not set"}]


def _of(stage: str, records: Records) -> Records:
    return [{"stage": stage, **record} for record in records]


def test_goals_are_judged_by_what_was_measured() -> None:
    records: Records = [
        {"stage": "fused", "size": 1, "alone_ms": 0.9, "images_s": 1_500},
        {"stage": "fused", "size": 128, "alone_ms": 6.0, "images_s": 24_000},
        {"stage": "fused", "reserved_MiB": 900, "grown_by_serving_MiB": 0, "device_MiB": 2_900},
        {"stage": "fused", "differences": {}, "agreement": 0.93},
        {"stage": "eager", "size": 64, "images_s": 10_000},
        {"stage": "eager", "differences": {}, "agreement": 0.99},
        {"stage": "compile", "size": 128, "images_s": 20_000},
        {"stage": "http", "decode": "host", "connections": 64, "images_s": 9_000},
        {"stage": "http", "decode": "device", "connections": 64, "images_s": 5_500},
        {"stage": "http", "decode": "device", "rate": 4_400, "latency_ms": {"p99": 24.0}},
        {"stage": "sanitizer", "ended": "failed"},
        {"stage": "memory", "ended": "skipped"},
    ]
    assert best_batch(records) == 128
    judged = {row["goal"]: (row["value"], row["met"]) for row in summary(records)}
    assert judged["images/s of the engine alone"] == (24_000, True)
    assert judged["times torch.compile's max-autotune"] == (1.2, False)
    assert judged["ms of one image alone"] == (0.9, True)
    assert judged["agreement with fp32, above eager's"] == (-0.06, False)
    assert judged["images/s over HTTP, decoded on the device"] == (5_500, True)
    assert judged["p99 in ms at 80 % of that"] == (24.0, True)
    assert judged["GB of the device"] == (3.04, False)
    assert judged["serving allocates nothing"] == (True, True)
    assert judged["no races between streams"] == (None, False)
    assert judged["too little memory: smaller batches"] == (None, None)
    assert judged["the CUDA tests pass"] == (None, None)


def test_the_tests_for_a_gpu_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='a'/>"
        "<testcase name='b'><failure message='wrong&#10;in lane 1'/></testcase>"
        "<testcase name='c'><skipped/></testcase></testsuite></testsuites>",
        "utf-8",
    )
    assert repository_tests.counted(report) == {
        "passed": 1,
        "failed": 1,
        "skipped_tests": 1,
        "which": {"b": "wrong"},
    }


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="they run by themselves")
def test_the_tests_for_a_gpu_need_no_other_packages_and_skip_without_one(tmp_path: Path) -> None:
    (record,) = found("tests", "random:resnet20", tmp_path)
    assert record["failed"] == record["passed"] == 0
    assert record["skipped_tests"] > 5


@pytest.mark.slow
def test_the_service_is_measured_over_http(tmp_path: Path) -> None:
    longer = replace(options("random:resnet20", tmp_path), seconds=0.2)
    start, *loads = list(findings("http", longer))
    assert start["start_s"] > 0
    assert [("connections" in row, "rate" in row) for row in loads] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert all(row["answers"].get(200, 0) > 0 for row in loads)


def test_what_a_machine_without_a_network_needs_is_listed() -> None:
    """Everything that this project needs but torch, and what that needs."""
    path = ROOT / "benchmarks/gpu_check/requirements.txt"
    lines = path.read_text("utf-8").splitlines()
    listed = {canonicalize_name(line) for line in lines if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    there = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
    needed: set[str] = set()
    waiting = [line for line in project["dependencies"] if not line.startswith("torch")]
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in needed or (requirement.marker and not requirement.marker.evaluate(there)):
            continue
        needed.add(name)
        waiting += metadata.requires(name) or []
    assert listed == needed
