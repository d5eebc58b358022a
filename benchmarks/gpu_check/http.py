"""The whole service over HTTP with photographs, on this host."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import images
from benchmarks.common.process import Started, cpu_seconds, processes, started
from benchmarks.gpu_check.stage import Figures, NotPossible, Options
from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target

PACKAGES = ("click", "fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
FILES = 32
CONNECTIONS = (64, 256)
OPEN_CONNECTIONS = 1024
SHARE = 0.8  # of the highest rate
LONGER = 4  # times the seconds of other measurements


def http(options: Options) -> Iterator[Figures]:
    """By where the JPEGs are decoded: the highest rate of closed loops, and the latencies of an
    open one at SHARE of it."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotPossible(f"not installed: {', '.join(missing)}")
    photos = images.photos(FILES)
    for decode in ("host",) if options.on_cpu else ("device", "host"):
        path = options.scratch / f"{decode}.yaml"
        path.write_text(json.dumps({"models": [_model(options, decode)]}), "utf-8")
        try:
            for found in _service(path, photos, options):
                yield {"decode": decode, **found}
        except SystemExit as reason:  # It did not start.
            yield {"decode": decode, "refused": str(reason)}


def _model(options: Options, decode: str) -> dict[str, str]:
    found = {"spec": options.model, "device": options.device, "precision": options.precision}
    return found if decode == "host" else {**found, "decode": decode}


def _service(settings: Path, photos: Sequence[bytes], options: Options) -> Iterator[Figures]:
    cache = options.scratch / "http"
    with started(["--config", str(settings)], photos[0], cache) as service:
        yield {"start_s": round(service.seconds, 1), "processes": len(processes(service.pid))}
        target = Target.of(service.url, photos)
        seconds = LONGER * options.seconds
        best = 0.0
        for connections in CONNECTIONS:
            figures = _load(service, target, Run(connections, seconds))
            best = max(best, figures["images_s"])
            yield {"connections": connections, **figures}
        rate = round(SHARE * best, 1)
        yield {"rate": rate, **_load(service, target, Run(OPEN_CONNECTIONS, seconds, rate=rate))}


def _load(service: Started, target: Target, run: Run) -> Figures:
    before = sum(cpu_seconds(service.pid))
    report = run_load(target, run)
    used = sum(cpu_seconds(service.pid)) - before
    return {
        "images_s": report.images_per_second,
        "latency_ms": report.latency_ms,
        "answers": report.answers,
        "service_cpu": round(used / (run.seconds + run.warm_up), 1),
        "generator_cpu": report.generator_cpu,
        "phases_ms": report.phases_ms,
    }
