"""OpenVINO without its telemetry.

Importing OpenVINO sends a report to its vendor, from a forked process that may never end; then the
service does not end either. OpenVINO also works without the package that sends it.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402
from openvino import opset14 as ops  # noqa: E402

__all__ = ["ops", "ov"]
