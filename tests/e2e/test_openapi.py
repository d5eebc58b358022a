"""Requests drawn from the OpenAPI description: what comes back is what it describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Service, client

# A deadline so short that it has passed is no server's error.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
# PUT beside POST is described in words.
[phases.coverage]
unexpected-methods = ["GET", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"]
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        ("coverage", 1),
        pytest.param("coverage,fuzzing", 200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_answers_are_those_described(
    service: Service, tmp_path: Path, phases: str, examples: int
) -> None:
    lines = len(service.log)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", phases),
            *("--max-examples", str(examples), "--seed", "1", "--continue-on-failure"),
            *("--generation-database", "none", "--warnings", "off", "--no-color"),
            *("--suppress-health-check", "all", "--request-timeout", "60"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get(f"{service.url}/health/ready").status_code == 200
    assert not [line for line in service.log[lines:] if "Traceback" in line or "ERROR" in line]


def test_refusals_are_described_as_the_problems_they_are(service: Service) -> None:
    described = client.get(f"{service.url}/openapi.json").json()
    for path in described["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and "Health" not in str(answer):
                    kinds = list(answer["content"])
                    assert kinds == ["application/problem+json"], (status, answer)
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}
