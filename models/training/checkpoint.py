"""What a run that was stopped goes on from."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import files

FORMAT = 1


class CannotResume(ValueError):
    """There is nothing to go on from, or it belongs to another run; one line says why."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state, and what makes it the same run.

    `run`: everything that decides the weights, as JSON has it: recipe, seed, network, data.
    """

    path: Path
    run: dict[str, Any]

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state whole or not at all, whenever the process or the machine dies."""
        with files.atomic(self.path) as file:
            torch.save({"format": FORMAT, "run": self.run, **state}, file)

    def load(self, device: str) -> dict[str, Any] | None:
        """The state last saved, its tensors on `device`; None if there is none.

        Raises:
            CannotResume: the file is damaged, or of another run.
        """
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            raise CannotResume(f"{self.path} is damaged; --restart begins the run anew") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CannotResume(f"{self.path} is no state of a run; --restart begins it anew")
        for key, value in self.run.items():
            if (before := state["run"].get(key)) != value:
                raise CannotResume(
                    f"{self.path} belongs to a run with another {_difference(key, before, value)}; "
                    "--restart begins anew"
                )
        return dict(state)


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = next(
            name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
        )
        return _difference(f"{key} {inner}", before.get(inner), now.get(inner))
    return f"{key}: {before} then, {now} now"
