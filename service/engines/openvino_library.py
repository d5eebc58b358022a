"""OpenVINO without its telemetry.

Importing OpenVINO reports to its vendor, from a forked process which may never end, and then the
service does not end either. It imports as well where the package that reports is not installed.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402
from openvino import opset14 as ops  # noqa: E402

__all__ = ["ops", "ov"]
