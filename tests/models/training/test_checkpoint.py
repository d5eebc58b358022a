"""A run's state is whole, and belongs to the run that goes on from it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from models.training.checkpoint import CannotResume, Checkpoint

RUN: dict[str, Any] = {"seed": 1, "recipe": {"learning_rate": 0.1, "batch_size": 8}}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", RUN)
    assert checkpoint.load("cpu") is None
    checkpoint.save({"step": 3, "weights": torch.arange(4)})
    state = checkpoint.load("cpu")
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(4))
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", RUN)
    checkpoint.save({"step": 3})
    (tmp_path / "state.pt.part").write_bytes(b"PK\x03\x04 half")
    state = checkpoint.load("cpu")
    assert state is not None
    assert state["step"] == 3


def test_a_full_disk_is_said_and_leaves_the_state_before(tmp_path: Path) -> None:
    checkpoint, first = (Checkpoint(tmp_path / name, RUN) for name in ("state.pt", "first.pt"))
    checkpoint.save({"step": 3})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        for saving, after in (
            (checkpoint, "--resume continues"),
            (first, "--overwrite starts over"),
        ):
            with pytest.raises(OSError, match=rf"\A[^\n]+\.pt cannot be written[^\n]+{after}\Z"):
                saving.save({"step": 4, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    state = checkpoint.load("cpu")
    assert state is not None
    assert state["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({**RUN, "seed": 2}, "another seed: 1 then, 2 now; --restart starts over"),
        (
            {**RUN, "recipe": {"learning_rate": 0.2, "batch_size": 8}},
            "another recipe learning_rate: 0.1 then, 0.2 now",
        ),
        ({**RUN, "data": "x"}, "another data: None then, x now"),
    ],
)
def test_a_state_of_another_run_is_refused(
    tmp_path: Path, run: dict[str, Any], message: str
) -> None:
    Checkpoint(tmp_path / "state.pt", RUN).save({"step": 3})
    with pytest.raises(CannotResume, match=message):
        Checkpoint(tmp_path / "state.pt", run).load("cpu")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 and then nothing"])
def test_a_damaged_state_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CannotResume, match=r"state\.pt is damaged; --restart starts over"):
        Checkpoint(tmp_path / "state.pt", RUN).load("cpu")


def test_half_a_state_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", RUN)
    checkpoint.save({"weights": torch.zeros(10_000)})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CannotResume, match="damaged"):
        checkpoint.load("cpu")


def test_a_state_never_runs_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": 1, "run": RUN, "bomb": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(CannotResume):
        Checkpoint(tmp_path / "state.pt", RUN).load("cpu")
    assert not (tmp_path / "ran").exists()


def test_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(CannotResume, match="is not the state of a run"):
        Checkpoint(tmp_path / "state.pt", RUN).load("cpu")
