"""Loads an HTTP classifier and tells how it stood it.

A closed loop finds the highest throughput; an open loop finds what callers see who do not wait for
each other.
"""

from __future__ import annotations

from service.load.histogram import Histogram
from service.load.report import Report
from service.load.runs import closed_loop, open_loop
from service.load.target import Target

__all__ = ["Histogram", "Report", "Target", "closed_loop", "open_loop"]
