"""Measures this project and its peers in turn, and writes the figures as JSON.

python -m benchmarks.peers --images FOLDER --output FILE.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import OURS, failures_of, summarise, table
from benchmarks.peers.servers import (
    PEERS,
    ROOT,
    PeerFailed,
    Running,
    install,
    started,
    version_of,
)

VARIANTS = ("tutorial", "tuned")
CHECKED_IMAGES = 4
WARM_UP_SECONDS = 3.0
# A class this close to the reference's best is as right: engines may round otherwise than fp32.
NEARLY = 0.98


def main() -> None:
    arguments = parse()
    images = sorted(path for path in arguments.images.iterdir() if path.is_file())
    if not images:
        raise SystemExit(f"{arguments.images}: holds no images")
    reference = Reference(arguments.model, images[:CHECKED_IMAGES])
    installed, runs = prepare(arguments.peers, arguments.variants)
    around = environment(arguments.peers)
    for number in range(1, arguments.rounds + 1):
        # All of them in each round, so that the machine's drift hits all alike.
        for peer, variant in installed:
            print(f"round {number}: {peer} {variant}", flush=True)
            try:
                found = list(measure(peer, variant, arguments, images, reference))
            # Whatever goes wrong with one peer, the others go on.
            except (PeerFailed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                found = [{"failed": str(error)}]
                print(f"  failed: {error}", flush=True)
            runs += [{"peer": peer, "variant": variant, "round": number, **run} for run in found]
            # After each peer: what was measured outlives whatever ends this early.
            write(arguments, images, around, runs)
    print(table(summarise(runs), failures_of(runs)))


def write(
    arguments: argparse.Namespace,
    images: list[Path],
    around: dict[str, Any],
    runs: list[dict[str, Any]],
) -> None:
    document = {
        "model": arguments.model,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "images": len(images),
        "environment": around,
        "medians": summarise(runs),
        "failures": failures_of(runs),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--peers", type=names, default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument(
        "--variants", type=names, default=list(VARIANTS), help=" or ".join(VARIANTS)
    )
    parser.add_argument("--connections", type=names, default=["1", "16"])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each load")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=Path, required=True, help="a folder of image files")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    for name, known in (("peers", PEERS), ("variants", VARIANTS)):
        for each in getattr(arguments, name):
            if each not in known:
                parser.error(f"--{name}: {each} is none of {', '.join(known)}")
    return arguments


def prepare(
    peers: list[str], variants: list[str]
) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The peers and variants that can be run, and a failure for each peer that cannot."""
    installed, failures = [], []
    for peer in peers:
        try:
            install(peer)
        except PeerFailed as error:
            failures.append({"peer": peer, "variant": "", "round": 0, "failed": str(error)})
        else:
            installed += [(peer, each) for each in (["default"] if peer == OURS else variants)]
    return installed, failures


class Reference:
    """What plain PyTorch in fp32 says of some images."""

    def __init__(self, spec: str, images: list[Path]) -> None:
        from benchmarks.peers.network import Tutorial

        network = Tutorial(spec)
        self.images = [path.read_bytes() for path in images]
        self._rows = network.infer([network.prepare(image) for image in self.images])

    def check(self, running: Running) -> None:
        """Raises `PeerFailed` if the peer takes an image for something else."""
        for image, row in zip(self.images, self._rows, strict=True):
            found = running.classify(image)
            if row[found] < NEARLY * row.max():
                raise PeerFailed(f"answers class {found}, not {row.argmax()}")


def measure(
    name: str,
    variant: str,
    arguments: argparse.Namespace,
    images: list[Path],
    reference: Reference,
) -> Iterator[dict[str, Any]]:
    """One run for each number of connections, of a peer that is started for them."""
    with started(name, variant, arguments.model, reference.images[0]) as running:
        reference.check(running)
        for connections in arguments.connections:
            # With as many connections: a peer that adapts its batching adapts to these.
            load(running, connections, WARM_UP_SECONDS, images)
            run = load(running, connections, arguments.seconds, images)
            answers = {int(status): count for status, count in run["answers"].items()}
            other = sum(answers.values()) - answers.get(200, 0)
            if not answers.get(200):
                raise PeerFailed(f"no answer with 200 under load: {answers}; {running.why()}")
            yield {
                "connections": run["connections"],
                "images_per_second": run["images_per_second"],
                "latency_ms": run["latency_ms"],
                "answers": run["answers"],
                "other_answers": other,
                "peak_rss_mib": round(running.peak_rss() / 2**20, 1),
            }


def load(running: Running, connections: str, seconds: float, images: list[Path]) -> dict[str, Any]:
    """One run of `resnet-serve bench`, in a process of its own."""
    form = ["--form", running.peer.form] if running.peer.form else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "service.cli", "bench", "--json", "--url", running.url),
            *("--connections", connections, "--seconds", str(seconds), *form),
            *map(str, images),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise PeerFailed(f"the load generator failed: {lines[-1]}")
    (run,) = json.loads(done.stdout)["runs"]
    return dict(run)


def environment(peers: list[str]) -> dict[str, Any]:
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    fields = dict(line.split(":", 1) for line in lscpu.splitlines() if ":" in line)
    return {
        "processor": fields.get("Model name", platform.processor()).strip(),
        "cpus": len(os.sched_getaffinity(0)),
        "flags": sorted(
            {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
            & set(fields.get("Flags", "").split())
        ),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            OURS: {each: version(each) for each in (OURS, "torch", "fastapi", "uvicorn")},
            **{peer: pins for peer in peers if (pins := version_of(peer))},
        },
    }


if __name__ == "__main__":
    main()
