"""Reports as JSON, for programs and for people."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from service.cli.load.environment import machine, versions
from service.cli.load.report import Report
from service.cli.load.target import Target

NUMBERS = re.compile(r"\[\s+([-+.\deE,\s]+?)\s+\]")


def document(target: Target, reports: Sequence[Report]) -> dict[str, Any]:
    return {
        "url": target.url,
        "images": len(target.requests),
        "machine": machine(),
        "versions": versions(),
        "runs": [report.as_json() for report in reports],
    }


def as_text(content: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line, since histograms are long."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
