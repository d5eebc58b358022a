from __future__ import annotations

import io
import re
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.peers.figures import failures_of, summarise, table
from benchmarks.peers.servers import HERE, PEERS, PeerFailed, multipart, started
from benchmarks.peers.supervise import descendants
from models.classifier import Classifier
from service.inference.decoding import decode_image
from service.repository import catalog

SPEC = "builtin:resnet20-cifar10"


def run(peer: str, rate: float, p50: float, **more: Any) -> dict[str, Any]:
    return {
        "peer": peer,
        "variant": "default" if peer == "resnet-serve" else "tuned",
        "connections": 16,
        "images_per_second": rate,
        "latency_ms": {"p50": p50, "p95": 2 * p50, "p99": 3 * p50},
        "peak_rss_mib": 100.0,
        "other_answers": 0,
        **more,
    }


RECORDED = [
    run("ray", 50.0, 300.0),
    run("resnet-serve", 200.0, 80.0),
    run("ray", 70.0, 260.0, other_answers=2),
    run("resnet-serve", 220.0, 70.0),
    {"peer": "bentoml", "variant": "tuned", "round": 1, "failed": "ended at its start: boom"},
    {"peer": "bentoml", "variant": "tuned", "round": 2, "failed": "ended at its start: boom"},
]


def test_medians_over_rounds_and_ratios() -> None:
    ray, ours = summarise(RECORDED)
    assert (ray["images_per_second"], ray["latency_ms"]["p50"], ray["rounds"]) == (60.0, 280.0, 2)
    assert ray["other_answers"] == 2
    assert ray["ours_over_peer"] == 3.5
    assert ray["latency_ours_over_peer"]["p99"] == pytest.approx(75 / 280, abs=0.001)
    assert "ours_over_peer" not in ours


def test_without_ours_there_are_no_ratios() -> None:
    (row,) = summarise([run("ray", 50.0, 300.0)])
    assert "ours_over_peer" not in row


def test_ratio_to_a_peer_that_answered_nothing_is_none() -> None:
    rows = summarise([run("ray", 0.0, 0.0), run("resnet-serve", 10.0, 1.0)])
    assert rows[0]["ours_over_peer"] is None


def test_table_has_a_line_for_each_row_and_failure() -> None:
    text = table(summarise(RECORDED), failures_of(RECORDED))
    assert "| ray | tuned | 16 | 60.0 | 280.0 | 560.0 | 840.0 | 100 | 3.50 |" in text
    assert text.count("bentoml tuned failed: ended at its start: boom") == 1


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.venv])
def test_requirements_are_pinned(name: str) -> None:
    lines = (HERE / f"requirements-{name}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert {"torch==2.13.0", "openvino==2026.4.1"} < set(lines)
    assert any(line.startswith(f"{name}==") for line in lines)


def test_multipart_is_read_back() -> None:
    body, kind = multipart("images", b"\x89PNG\r\n--")
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    (part,) = [each for each in message.walk() if not each.is_multipart()]
    assert part.get_param("name", header="content-disposition") == "images"
    assert part.get_payload(decode=True) == b"\x89PNG\r\n--"


def test_supervised_command_leaves_nothing_behind() -> None:
    """A grandchild in a session of its own ends with its command."""
    inner = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
        "start_new_session=True); print(p.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.supervise", sys.executable, "-c", inner],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        timeout=30,
        check=True,
    )
    assert "left behind" in done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_fastapi_answers_as_this_project_does() -> None:
    ship = (HERE.parents[1] / "docs" / "ship.png").read_bytes()
    random = np.random.default_rng(0)
    images = [ship]
    for _ in range(3):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((40, 32)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    with started("fastapi", "tutorial", SPEC, ship) as running:
        found = [running.classify(image) for image in images]
        assert running.peak_rss() > 50 * 2**20
        started_processes = descendants(running.process.pid)
    assert started_processes
    assert not any(Path(f"/proc/{process}").exists() for process in started_processes)
    assert found == ours(images)


def ours(images: list[bytes]) -> list[int]:
    """The likeliest classes by this project's decoder and forward."""
    bundle = catalog.load(SPEC).bundle
    pixels = np.stack([decode_image(image, bundle.input, 10**6).pixels for image in images])
    with torch.inference_mode():
        rows = Classifier(bundle.network(), bundle.input)(torch.from_numpy(pixels))
    classes: list[int] = rows.argmax(1).tolist()
    return classes


def test_peer_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(PeerFailed, match=r"ended at its start: .*nosuch"),
        started("fastapi", "tutorial", "builtin:nosuch", b""),
    ):
        pass
