"""The stages in the order of their worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stage:
    """The function `name` of `module` runs for at most `limit` seconds.

    `gpu`: on the CPU it runs only if it is named; `beside`: it measures no speed, and may run at
    the same time as its neighbours that do not either.
    """

    name: str
    module: str
    limit: float
    gpu: bool = False
    beside: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("facts", "facts", 25),
        Stage("fused", "engine", 45, gpu=True),
        Stage("eager", "engine", 35),
        Stage("convolutions", "convolutions", 25, gpu=True),
        Stage("compile", "compiled", 60, gpu=True),
        Stage("tests", "repository_tests", 45, beside=True),
        Stage(
            "sanitizer",
            "sanitizer",
            40,
            gpu=True,
            beside=True,
            environment={"TORCH_CUDA_SANITIZER": "1"},
        ),
        Stage("capture", "capture", 40, beside=True),
        Stage("trained", "trained", 30, beside=True),
        Stage("memory", "memory", 50, gpu=True, beside=True),
        Stage("poison", "poison", 30, gpu=True, beside=True),
        Stage("neighbours", "neighbours", 40, beside=True),
        Stage("jpeg", "jpeg", 20),
        Stage("http", "http", 75),
    )
}
