"""The state from which a stopped training run resumes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import files

FORMAT = 1


class CannotResume(ValueError):
    """The saved state is damaged or belongs to another run; the message gives the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run saves its state, and what identifies the run.

    `run`: everything that determines the weights, as JSON values: recipe, seed, network, data.
    """

    path: Path
    run: dict[str, Any]

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state atomically.

        Raises:
            OSError: it cannot be written; the state before it remains.
        """
        whole = {"format": FORMAT, "run": self.run, **state}
        try:
            with files.atomic(self.path) as file:
                torch.save(whole, file)
        except RuntimeError as error:  # So torch reports a full disk, in many lines of C++.
            after = "--resume continues" if self.path.exists() else "--overwrite starts over"
            raise OSError(
                f"{self.path} cannot be written, perhaps because the disk is full; make room, then "
                f"{after}"
            ) from error

    def load(self, device: str) -> dict[str, Any] | None:
        """The last saved state, with tensors on `device`; None if there is none.

        Raises:
            CannotResume: the file is damaged or belongs to another run.
        """
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            raise CannotResume(f"{self.path} is damaged; --restart starts over") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CannotResume(f"{self.path} is not the state of a run; --restart starts over")
        for key, value in self.run.items():
            if (before := state["run"].get(key)) != value:
                raise CannotResume(
                    f"{self.path} belongs to a run with another {_difference(key, before, value)}; "
                    "--restart starts over"
                )
        return dict(state)


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = next(
            name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
        )
        return _difference(f"{key} {inner}", before.get(inner), now.get(inner))
    return f"{key}: {before} then, {now} now"
