"""Whether an engine serves, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.engines import faults

# "lost": only another process can serve again, or one hung call that returns after all.
State = Literal["loading", "ready", "failed", "lost"]


@dataclass
class EngineStatus:
    """Written by an engine's thread and its watchdog, read by everybody.

    `poisoned`: no call to the device can succeed in this process any more.
    """

    state: State = "loading"
    reason: str = "the engine is warming up"
    poisoned: bool = False

    def warms_up(self, doing: str) -> None:
        if self.state == "loading":
            self.reason = f"the engine is warming up: {doing}"

    def ready(self) -> None:
        if not self.poisoned:
            self.state, self.reason = "ready", ""

    def failed(self, what: str, error: Exception) -> None:
        self.poisoned |= faults.poisons(error)
        self.state = "lost" if self.poisoned else "failed"
        self.reason = f"{what}: {faults.in_one_line(error)}"

    def hangs(self, seconds: float) -> None:
        self.state = "lost"
        self.reason = f"the engine hangs: a batch has not returned for {seconds:.0f} s"

    def ended(self, error: Exception) -> None:
        self.state = "lost"
        self.reason = f"a bug ended the engine's thread: {type(error).__name__}: {error}"
