"""The log of a run: whole after a kill, cut back for a resume, and as a picture."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.extras import install
from models.training import history
from models.training.history import Epoch, History


def row(epoch: int, **changes: float | None) -> Epoch:
    """A row of a run with 10 steps in an epoch."""
    made = Epoch(epoch, 10 * epoch, 0.1, 2 / epoch, 0.5, 2.5 / epoch, 0.4, 0.9, 1000.5, 1.25)
    return replace(made, **changes)  # type: ignore[arg-type]


def logged(folder: Path, epochs: int) -> History:
    log = History(folder)
    for epoch in range(1, epochs + 1):
        log.append(row(epoch))
    log.close()
    return log


def scalars(folder: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_rows_are_read_back_from_all_three(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "x.run"
    log = History(folder)
    rows = [row(1), row(2, test_loss=None, test_top1=None, test_top5=None), row(3, loss=1 / 3)]
    for number, each in enumerate(rows, 1):
        log.append(each)
        assert len((folder / "log.jsonl").read_text().splitlines()) == number, "at once"
    log.close()
    assert history.read(folder) == rows == list(History(folder).rows)
    with (folder / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in table] == [each.loss for each in rows]
    assert [line["test_top1"] for line in table] == ["0.4", "", "0.4"]
    assert scalars(folder, "loss/train") == pytest.approx({10: 2, 20: 1, 30: 1 / 3})
    assert set(scalars(folder, "top5/test")) == {10, 30}
    assert set(scalars(folder, "learning_rate")) == {10, 20, 30}


def test_a_figure_that_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    log = History(tmp_path)
    log.append(row(1, loss=math.inf, test_loss=math.nan))
    log.close()
    values = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert values["loss"] is values["test_loss"] is None
    (found,) = history.read(tmp_path)
    assert math.isnan(found.loss)
    assert found.test_loss is None


def test_a_resumed_run_replaces_what_its_checkpoint_does_not_hold(tmp_path: Path) -> None:
    logged(tmp_path, 4)
    # TensorBoard sorts files by name: their second, then a count in which 10 is before 9.
    time.sleep(1 - time.time() % 1)
    log = History(tmp_path)
    log.truncate(25)
    assert [each.step for each in log.rows] == [10, 20]
    assert not list(tmp_path.glob("*.part"))
    log.append(row(3, loss=7.0))
    log.close()
    expected = [row(1), row(2), row(3, loss=7.0)]
    assert history.read(tmp_path) == expected
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert scalars(tmp_path, "loss/train") == {10: 2, 20: 1, 30: 7}


def test_a_run_that_begins_again_forgets_all(tmp_path: Path) -> None:
    log = logged(tmp_path, 3)
    log.truncate(0)
    log.append(row(1, loss=5.0))
    log.append(row(2, loss=4.0))
    log.close()
    assert len(history.read(tmp_path)) == 2
    assert scalars(tmp_path, "loss/train") == {10: 5, 20: 4}


@pytest.mark.parametrize("kept", [0, 1, 30, 140, -1])
def test_a_half_written_last_line_is_left_out_and_written_over(tmp_path: Path, kept: int) -> None:
    logged(tmp_path, 3)
    path = tmp_path / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:kept])
    log = History(tmp_path)
    log.truncate(20)
    log.append(row(3, loss=9.0))
    log.close()
    assert history.read(tmp_path) == [row(1), row(2), row(3, loss=9.0)]


def test_a_killed_run_leaves_a_log(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from models.training.history import Epoch, History
log = History(Path({str(tmp_path)!r}))
for epoch in (1, 2):
    log.append(Epoch(epoch, 10 * epoch, 0.1, 2.0, 0.5, None, None, None, 1.0, 1.0))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [each.epoch for each in history.read(tmp_path)] == [1, 2]
    assert set(scalars(tmp_path, "loss/train")) == {10, 20}


def test_rows_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    log = logged(tmp_path, 2)
    with pytest.raises(ValueError, match=r"log\.jsonl: step 20 cannot follow step 20; truncate"):
        log.append(row(2))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no JSON", "line 2 is damaged"),
        ("[1]", "not an object of epoch, step"),
        ('{"epoch": 2}', "not an object of epoch, step"),
        (json.dumps(asdict(row(2)) | {"loss": "low"}), "loss is 'low'"),
        (json.dumps(asdict(row(2)) | {"step": 20.5}), "step is 20.5"),
        (json.dumps(asdict(row(2)) | {"step": None}), "step is None"),
        (json.dumps(asdict(row(1))), "line 2 is not later"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    lines = [json.dumps(asdict(row(1))), line, json.dumps(asdict(row(3)))]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=words) as caught:
        History(tmp_path)
    assert str(tmp_path / "log.jsonl") in str(caught.value)


def test_without_tensorboard_the_run_goes_on_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told: list[str] = []
    log = History(tmp_path, told.append)
    log.append(row(1))
    log.append(row(2))
    log.truncate(10)
    log.append(row(2))
    assert told == [f"no TensorBoard files are written: {install('train')}"]
    assert len(history.read(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "log.jsonl"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_curves_show_train_and_test(tmp_path: Path, seeds: int) -> None:
    runs = []
    for seed in range(seeds):
        log = History(tmp_path / f"{seed}.run")
        for epoch in range(1, 6):
            log.append(row(epoch, loss=(2 + seed) / epoch))
        log.close()
        runs.append(log.folder)
    path = tmp_path / "curves.png"
    history.curves(runs if seeds > 1 else runs[0], path, title="resnet20")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width > 1000
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert (pixels == colour).all(1).sum() > 50, "train, test and the learning rate are drawn"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "rows",
    [
        [row(1)],
        [row(1, test_loss=None, test_top1=None), row(2, test_loss=None, test_top1=None)],
        [row(1, accuracy=1.0), row(2, accuracy=1.0, learning_rate=0.0)],
        [row(1), row(2, loss=math.nan, test_top1=None), row(3, loss=math.nan)],
    ],
)
def test_curves_of_what_is_hard_to_draw(tmp_path: Path, rows: list[Epoch]) -> None:
    history.curves([rows], tmp_path / "c.svg")
    assert "</svg>" in (tmp_path / "c.svg").read_text()


def test_curves_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.run"
    History(empty).truncate(0)
    with pytest.raises(ValueError, match=r"empty\.run: no epoch is logged yet"):
        history.curves(empty, tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.jpg: must end in \.pdf, \.png, \.svg"):
        history.curves([[row(1)]], tmp_path / "c.jpg")
    with pytest.raises(ValueError, match=r"nowhere/log\.jsonl: No such file"):
        history.curves(tmp_path / "nowhere", tmp_path / "c.png")
    with pytest.raises(ValueError, match="no run to draw"):
        history.curves([], tmp_path / "c.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="need matplotlib: pip install 'matplotlib>="):
        history.curves([[row(1)]], tmp_path / "c.png")
