"""What a stage is told, and how it says that it is not possible here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """`model`: a SPEC; `device`: cpu or cuda:N; `seconds`: for each measurement; `max_batch`: of
    the engines; `batch`: of what an engine is compared with; `scratch`: a folder that the stages of
    a run share."""

    model: str
    device: str
    precision: str
    seconds: float
    max_batch: int
    batch: int
    scratch: Path

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    @property
    def kind(self) -> str:
        """The engine that serves on the device: on the CPU, the plain one stands in for it."""
        return "eager" if self.on_cpu else "fused"

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"scratch": str(self.scratch)})

    @staticmethod
    def from_json(text: str) -> Options:
        values = json.loads(text)
        return Options(**values | {"scratch": Path(values["scratch"])})


class NotPossible(Exception):
    """The stage needs what this machine does not have; the message says what."""
