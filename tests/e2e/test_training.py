"""From images to answers: train, be killed, resume, evaluate, serve."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from models import bundle
from models.training.history import LOG
from tests.conftest import COMMAND, client, started
from tests.support import made, tiny

RUN = (
    *("--variant", "resnet20", "--set", "blocks=[1,1,1]", "--set", "planes=[4,8,8]"),
    *("--batch-size", "8", "--learning-rate", "0.05", "--device", "cpu"),
    *("--precision", "fp32"),
)


def train(data: Path, test: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [COMMAND, "train", *RUN, "--data", str(data), "--test-data", str(test), *flags]
    return subprocess.Popen(
        [*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("colours")
    return made.folder(folder / "train", 72), made.folder(folder / "test", 24, seed=1)


@pytest.mark.slow
def test_train_kill_resume_evaluate_serve(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    epochs = ("--epochs", "12")
    undisturbed = train(*folders, whole, *epochs)
    killed = train(*folders, cut, *epochs)
    log = tmp_path / "cut.run" / LOG
    until = time.monotonic() + 60
    while time.monotonic() < until and killed.poll() is None:
        if log.exists() and log.read_text().count("\n") >= 2:
            break
        time.sleep(0.005)
    killed.kill()
    _, said = killed.communicate()
    assert killed.returncode == -9, said
    assert not cut.exists()

    resumed = train(*folders, cut, *epochs, "--resume")
    for run in (undisturbed, resumed):
        _, said = run.communicate(timeout=110)
        assert run.returncode == 0, said
    first, second = bundle.read(whole), bundle.read(cut)
    assert tiny.same_bits(first.tensors, second.tensors), "as if it had never been killed"
    assert first.metrics == second.metrics
    assert first.temperature == second.temperature
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    left = {file.name for file in log.parent.iterdir() if not file.name.startswith("events")}
    assert left == {"log.jsonl", "log.csv", "curves.png"}

    evaluated = json.loads(
        subprocess.check_output(
            [COMMAND, "evaluate", "--precision", "fp32", "--model", cut, "--json", folders[1]]
        )
    )
    assert evaluated["top1"] == second.metrics["test"]["top1"] > 0.8
    with started("--model", str(cut)) as service:
        right = 0
        for file in sorted(folders[1].rglob("*.png")):
            answer = client.post(f"{service.url}/v1/classify", content=file.read_bytes())
            right += answer.json()["predictions"][0]["label"] == file.parent.name
    assert right == round(evaluated["top1"] * 24)
