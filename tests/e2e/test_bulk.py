"""A run of `resnet-serve classify` that is killed goes on where it was: no row lost, none twice."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import tarfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from service.inference.decoding import decode_image
from service.repository import catalog
from tests.conftest import CACHE, COMMAND, PATIENCE, encoded
from tests.support import rounding
from tests.support.commands import run

DISTINCT = [encoded(size=(32, 8 + 8 * number)) for number in range(5)]
SPEC = "builtin:resnet10-cifar10"
MODEL = ("--model", SPEC, "--precision", "fp32", "--top-k", "1")


def archive(path: Path, images: int) -> Path:
    """So many images, of which every 50th is none."""
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            data = DISTINCT[number % 5] if number % 50 else b"no image"
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def begun(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"RESNET_SERVE_CACHE_DIR": CACHE}
    return subprocess.Popen(
        [COMMAND, "classify", *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_in(state: Path) -> int:
    """Bytes of the journals, and of the parts."""
    return sum(path.stat().st_size for path in [*state.glob("*.jsonl"), *state.parent.glob("p*")])


def stopped(process: subprocess.Popen[str], state: Path, wait: float, sig: signal.Signals) -> str:
    """What it said, signalled `wait` seconds after it wrote more rows, unless it ended before."""
    before, until = rows_in(state), time.monotonic() + PATIENCE
    while process.poll() is None and rows_in(state) <= before and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(sig)
    said = process.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in said
    return said


def check(path: Path, images: int) -> None:
    """Every image has one row, in order, with the answer that it has alone."""
    rows = pyarrow.parquet.read_table(path).to_pylist()
    names = [re.sub(r".*/", "", row["file"]) for row in rows]
    assert names == [f"{number:06}.png" for number in range(images)]
    assert [bool(row["error"]) for row in rows] == [number % 50 == 0 for number in range(images)]
    opened = catalog.load(SPEC).bundle
    pixels = np.stack([decode_image(data, opened.input, 10**6).pixels for data in DISTINCT])
    with torch.inference_mode():
        alone = opened.classifier()(torch.from_numpy(pixels)).numpy()
    allowed = rounding.of_probabilities(alone, opened.tensors)
    for number, row in enumerate(rows):
        if not row["error"]:
            known = alone[number % 5]
            assert row["class_id"] == known.argmax()
            assert row["probability"] == pytest.approx(known.max(), abs=allowed)
    assert np.diff(np.sort(alone.max(1))).min() > 2 * allowed, "each has an answer of its own"


@pytest.mark.parametrize(
    ("sig", "status"),
    [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_run_goes_on_after_a_signal(tmp_path: Path, sig: signal.Signals, status: int) -> None:
    images, output = 1500, tmp_path / "out"
    tar = archive(tmp_path / "images.tar", images)
    arguments = (tar, *MODEL, "--output", output, "--rows-per-file", "150")
    process = begun(*arguments)
    said = stopped(process, output / "_resume", 0.0, sig)
    assert process.returncode == status, said
    if sig == signal.SIGINT:
        assert said == "resnet-serve: interrupted; run the same command to continue\n"
    assert rows_in(output / "_resume") > 0
    assert not (output / "part-00009.parquet").exists()
    assert "images could not be classified; " in run("classify", *arguments, status=1).stderr
    check(output, images)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_no_row_is_lost_or_twice_however_often_it_is_killed(tmp_path: Path, output: str) -> None:
    images = 6_000
    draw = random.Random(output)
    tar = archive(tmp_path / "images.tar", images)
    to = tmp_path / output
    state = to / "_resume" if output == "out" else to.with_name("out.parquet.resume")
    parts = ("--rows-per-file", "700") if output == "out" else ()
    for kills in count():
        process = begun(tar, *MODEL, "--output", to, *parts)
        if kills < 8:
            stopped(process, state, 1.5 * draw.random(), signal.SIGKILL)
        process.communicate(timeout=2 * PATIENCE)
        if process.returncode == 1:  # The archive has some that are no images.
            break
        assert process.returncode == -9
    assert kills >= 3
    check(to, images)
