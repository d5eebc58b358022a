"""Reports as JSON that others can compute with, and people can read."""

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
    """Indented JSON in which a list of numbers takes one line, however long a histogram is."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
