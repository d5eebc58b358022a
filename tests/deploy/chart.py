"""The chart as Helm itself renders it.

In a process of its own (`python -m tests.deploy.chart`), because Helm is written in Go, whose
threads and signal handlers are none for a process that forks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/kubernetes/chart"
RELEASE = "resnet-serve"
NAMESPACE = "default"
# Of Helm's severities of a finding, the first that is more than advice.
WARNING = 2
Values = dict[str, Any]
# What is rendered for the tests: the chart's own values, and each file of `ci` over them.
SETS: dict[str, Values] = {"default": {}} | {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((CHART / "ci").glob("*-values.yaml"))
}


@dataclass(frozen=True)
class Rendered:
    """`documents` without what `helm test` runs, which is `tests`; or why there are none."""

    documents: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    notes: str
    findings: list[str]
    refusal: str

    def one(self, kind: str) -> Any:
        (found,) = [each for each in self.documents if each["kind"] == kind]
        return found


def render(*sets: Values, release: str = RELEASE, lint: bool = False) -> list[Rendered]:
    """The chart with each of `sets` over its own values; skips where there is no Helm.

    `lint` has Helm look for faults as well.
    """
    if util.find_spec("helm_python") is None:
        import pytest

        pytest.skip("Helm is not to be had for this machine")
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        input=json.dumps({"sets": sets, "release": release, "lint": lint}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [_read(**answer) for answer in json.loads(done.stdout)]


def _read(files: dict[str, str], findings: list[str], refusal: str) -> Rendered:
    documents: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    notes = ""
    for path, text in files.items():
        if path.endswith(".txt"):
            notes = text
            continue
        documents["/tests/" in path] += [each for each in yaml.safe_load_all(text) if each]
    return Rendered(documents[False], documents[True], notes, findings, refusal)


def main() -> None:
    import helm_python

    asked = json.load(sys.stdin)
    answers: list[dict[str, Any]] = []
    with helm_python.Chart.load(CHART) as chart:
        for values in asked["sets"]:
            answers.append({"files": {}, "findings": [], "refusal": ""})
            try:
                answers[-1]["files"] = chart.render(
                    values, name=asked["release"], namespace=NAMESPACE
                )
            except helm_python.HelmError as error:
                answers[-1]["refusal"] = error.detail
            if asked["lint"]:
                report = helm_python.lint(CHART, values, strict=True)
                answers[-1]["findings"] = [
                    f"{each['path']}: {each['error']}"
                    for each in report["messages"]
                    if each["severity"] >= WARNING
                ]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
