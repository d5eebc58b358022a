"""`resnet-serve classify` of many images, against what its engine and its decoder could do.

python -m benchmarks.serving.bulk --output benchmarks/results/bulk.json

For small PNGs and for photographs: the engine alone, decoding alone, both at once with nothing
between them, which is the ceiling, and the rows that the command writes from a tar archive; in
turn, several times, as machines are disturbed. Then the memory of a long run of the command.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.common import images
from models.preprocess import InputSpec
from service.cli.bulk import inputs, stream
from service.cli.bulk.inputs import WHOLE, Encoded
from service.cli.bulk.journal import Journal, layout
from service.cli.load.environment import machine, versions
from service.inference import decoding
from service.repository import catalog, offline
from service.runtime import cpus

# A SPEC, its images, and how many of them a round takes.
CASES: dict[str, tuple[str, Callable[[], list[bytes]], int]] = {
    "resnet20, 32x32 PNG": ("builtin:resnet20-cifar10", lambda: images.small(32), 4000),
    "resnet50, 500x375 JPEG": ("random:resnet50", images.photos, 32),
}
LONG = "builtin:resnet20-cifar10"
SAMPLE_SECONDS = 2.0
PAGE = 4096


def archive(path: Path, encoded: Sequence[bytes], count: int) -> Path:
    """A tar archive of `count` images, the few in turn under names of their own."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(islice(cycle(encoded), count)):
            member = tarfile.TarInfo(f"{number // 1000:05}/{number:08}.img.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined]
    return path


def compare(
    spec: str, encoded: Sequence[bytes], count: int, rounds: int, folder: Path
) -> dict[str, Any]:
    """Images per second, and seconds of CPU for each image, of the parts and of the whole."""
    bundle = catalog.load(spec).bundle
    engine = offline.warm(bundle)
    threads = cpus()
    size = engine.buckets.take(engine.buckets.largest)
    tar = archive(folder / "images.tar", encoded, count)
    batches = [
        [Encoded("", data) for data in islice(cycle(encoded), start, start + size)]
        for start in range(0, count, size)
    ]
    pixels = [
        decoding.decode_image(data, bundle.input, stream.MAX_PIXELS).pixels
        for data in encoded[:size]
    ]

    def compute() -> None:
        for batch in batches:
            engine.launch(pixels[: len(batch)])()

    def decode() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda batch: _decode(batch, bundle.input), batches))

    def both() -> None:
        with ThreadPoolExecutor(1) as pool:
            computing = pool.submit(compute)
            decode()
            computing.result()

    def command() -> None:
        place = layout(folder / "out", None, WHOLE)
        with closing(Journal(place, {}, overwrite=True)) as journal:
            entries = inputs.remaining([tar])
            for rows in stream.classify(entries, bundle, engine, 5, threads):
                journal.write(rows)
            journal.finish()

    parts = {"engine": compute, "decode": decode, "both": both, "command": command}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "images": count,
        "batch": size,
        "engine": engine.engine.name,
        "decode_threads": threads,
        "images_per_second": {
            name: [round(count / wall, 1) for wall, _ in runs] for name, runs in found.items()
        },
        "cpu_ms_per_image": {
            name: round(statistics.median(cpu for _, cpu in runs) / count * 1000, 4)
            for name, runs in found.items()
        },
        "command_of_both": _median_ratio(found, 0),
        "command_of_both_in_cpu": _median_ratio(found, 1),
    }


def _decode(batch: Sequence[Encoded], spec: InputSpec) -> None:
    for image in batch:
        stream.decode(image, spec)


def _median_ratio(found: dict[str, list[tuple[float, float]]], kind: int) -> float:
    pairs = zip(found["both"], found["command"], strict=True)
    return round(statistics.median(both[kind] / command[kind] for both, command in pairs), 3)


def memory(count: int, folder: Path) -> dict[str, Any]:
    """Resident memory while the command classifies `count` small images of a tar archive."""
    tar = archive(folder / "many.tar", images.small(32), count)
    output = folder / "many"
    command = ["classify", str(tar), "--model", LONG, "--output", str(output)]
    began = time.perf_counter()
    samples: list[tuple[float, float]] = []
    with subprocess.Popen([sys.executable, "-m", "service.cli", *command]) as process:
        status = Path(f"/proc/{process.pid}/statm")
        while process.poll() is None:
            pages = int(status.read_text().split()[1])
            samples.append((round(time.perf_counter() - began, 1), round(pages * PAGE / 2**20, 1)))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    arguments = json.loads((output / "_resume" / "arguments.json").read_text())
    quarter = len(samples) // 4
    return {
        "images": count,
        "rows": arguments["rows"],
        "seconds": round(seconds, 1),
        "images_per_second_with_start": round(count / seconds, 1),
        "mib_second_quarter": _mean(samples[quarter : 2 * quarter]),
        "mib_last_quarter": _mean(samples[-quarter:]),
        "mib_most": max(mib for _, mib in samples),
        "seconds_and_mib": samples[:: max(1, len(samples) // 60)],
    }


def _mean(samples: Sequence[tuple[float, float]]) -> float:
    return round(statistics.fmean(mib for _, mib in samples), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200_000, help="of the long run; 0 skips it")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison; 0 skips it")
    parser.add_argument("--output", type=Path, help="what was found is added to this JSON file")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.output and given.output.exists():
        found = json.loads(given.output.read_text())
    found |= {"machine": machine(), "versions": versions()}
    for name, (spec, make, count) in CASES.items() if given.rounds else ():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compare(spec, make(), count, given.rounds, Path(folder))
        print(json.dumps({name: found[name]}, indent=2), flush=True)
    if given.images:
        with tempfile.TemporaryDirectory() as folder:
            found["memory"] = memory(given.images, Path(folder))
        print(json.dumps(found["memory"] | {"seconds_and_mib": "..."}, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
