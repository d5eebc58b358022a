"""The style of the project's plots."""

from __future__ import annotations

from typing import Any

# Matplotlib's rc parameters.
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "resnet-serve",
}
