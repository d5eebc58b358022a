"""Starts the service with a model, loads it over HTTP, and writes the figures as JSON.

python -m benchmarks.service --model builtin:resnet20-cifar10 --output results.json
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--size", type=int, default=32, help="pixels of the images' sides")
    parser.add_argument("--images", type=int, default=64, help="distinct images")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each load")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "service.cli"]
    with tempfile.TemporaryDirectory() as folder:
        images = [str(path) for path in _images(Path(folder), arguments.images, arguments.size)]
        server = subprocess.Popen(
            [*command, "serve", "--model", arguments.model, "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            base = _wait_until_ready(server)
            subprocess.run(
                [
                    *command,
                    "bench",
                    f"--url={base}/v1/classify",
                    f"--seconds={arguments.seconds}",
                    f"--output={arguments.output}",
                    *images,
                ],
                check=True,
            )
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def _images(folder: Path, count: int, size: int) -> list[Path]:
    """Distinct smooth images as PNG: noise would make decoding look slower than it is."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / f"{index:03}.png"
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def _wait_until_ready(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"http://\S+:\d+", line):
            break
    else:
        raise SystemExit("the service did not start")
    # Its log must go on being read, or the pipe would fill and block it.
    threading.Thread(target=server.stderr.read, daemon=True).start()
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{match[0]}/health/ready"):
                return match[0]
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready")


if __name__ == "__main__":
    main()
