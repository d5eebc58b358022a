"""What the processor can do is read in one place, where the environment may stand in for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models import hardware, processor
from service.cli.load.environment import machine
from service.config.loading import load
from tests.support import other_cpu

AMX = ("amx_bf16", "amx_int8", "amx_tile", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("", "fp32"),
        ("avx2 avx512_vnni", "fp32"),
        ("avx512_bf16 avx2", "bf16"),
        ("amx_bf16", "bf16"),
        ("asimd bf16", "bf16"),
        ("amx_int8 svebf16", "fp32"),
    ],
)
def test_the_flags_decide_the_precision(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    monkeypatch.setenv(processor.VARIABLE, flags)
    assert processor.flags() == tuple(sorted(flags.split()))
    assert hardware.native_precision("cpu") == precision
    assert hardware.describe("cpu").split()[1:] == sorted(flags.split()), "caches know by it"
    known = {"avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16"}
    assert set(machine()["flags"]) == known & set(flags.split())
    load(environ={processor.VARIABLE: flags})  # It is no setting, and no mistyped one.


def test_without_the_variable_they_are_linuxs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processor.VARIABLE, raising=False)
    text = Path("/proc/cpuinfo").read_text("utf-8")
    assert processor.flags()
    assert all(f" {flag}" in text for flag in processor.flags())


def test_the_other_kind_of_cpu_has_the_other_precision() -> None:
    plain = ("avx2", "avx512_vnni")
    for flags, other in (
        (AMX, plain),
        (plain, ("avx2", "avx512_bf16", "avx512_vnni")),
        (("asimd", "bf16", "i8mm", "svebf16"), ("asimd",)),
        ((), ("avx512_bf16",)),
    ):
        found = other_cpu.environment(flags)
        assert tuple(sorted(found[processor.VARIABLE].split())) == other
        assert ("ONEDNN_MAX_CPU_ISA" in found) is not processor.BF16.isdisjoint(flags)


@pytest.mark.precision
def test_every_process_below_is_told() -> None:
    program = "from models import processor; print(processor.has_bf16())"
    here = [sys.executable, "-c", program]
    below = ("import subprocess, sys;", f"subprocess.run([sys.executable, '-c', {program!r}])")
    for command in (here, [sys.executable, "-c", " ".join(below)]):
        found = subprocess.check_output(command, text=True).strip()
        assert found == str(processor.has_bf16())
        other = subprocess.check_output(
            [sys.executable, "-m", "tests.support.other_cpu", *command], text=True
        )
        assert other.split()[-1] == str(found == "False")
