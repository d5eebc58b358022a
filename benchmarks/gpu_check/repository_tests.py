"""This repository's own tests that need a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.gpu_check.stage import Figures, NotPossible, Options

ROOT = Path(__file__).parents[2]


def tests(options: Options) -> Iterator[Figures]:
    """How many passed, failed and were skipped, and which failed."""
    if importlib.util.find_spec("pytest") is None:
        raise NotPossible("pytest is not installed")
    files = sorted(
        str(path)
        for path in ROOT.glob("tests/**/test_*.py")
        if "mark.gpu" in path.read_text("utf-8")
    )
    if not files:
        raise NotPossible("there are no tests with the mark `gpu` here")
    report = options.scratch / "tests.xml"
    # Without the project's settings and fixtures, which ask for more packages.
    flags = ["-c", "/dev/null", "--rootdir", str(ROOT), "--noconftest", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *flags, "-q", "-m", "gpu", f"--junitxml={report}"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError((done.stdout + done.stderr).strip())
    yield counted(report)


def counted(report: Path) -> Figures:
    """The figures of a JUnit report."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [
        case for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped_tests": len(skipped),
        "which": {case.get("name", "?"): _why(case) for case in failed},
    }


def _why(case: ET.Element) -> str:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return (found.get("message") or "").partition("\n")[0][:200]
    return ""
