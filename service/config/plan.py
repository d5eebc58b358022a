"""Planning the numbers of processes and threads from the cost of requests on this machine.

`service.cli.trial` measures the costs before the first start, in a separate process: nothing
disturbs it, and its exit frees the memory of measuring and compiling. The plan is kept beside the
compiled engines, so that later starts only read it. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from models import files, processor
from models.interchange import specs
from service import logs, runtime
from service.config import capacity
from service.config.capacity import Costs
from service.config.settings import ModelSettings, Settings
from service.config.sources import SECRETS
from service.config.variables import environment

log = logging.getLogger(__name__)
VERSIONED = ("resnet-serve", "torch", "openvino", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True)
class Plan:
    """`request`: seconds of CPU time for a request's HTTP; `models`: the cost of an image, for
    each model on the CPU whose threads are ours to choose."""

    request: float
    models: Sequence[Costs] = ()

    def applied(self, settings: Settings) -> Settings:
        """The settings with unset values filled in, for the most demanding model."""
        available = runtime.cpu_time()
        explicit = settings.model_fields_set
        if not self.models:
            return settings
        workers = settings.workers
        if "workers" not in explicit:
            workers = max(capacity.front_ends(costs, available) for costs in self.models)
        decoders = settings.decode_threads
        if "decode_threads" not in explicit:
            decoders = max(
                capacity.decode_threads(costs, available, workers) for costs in self.models
            )
        return settings.model_copy(update={"workers": workers, "decode_threads": decoders})


UNMEASURED = Plan(capacity.USUAL_REQUEST)


def plan(settings: Settings) -> Plan:
    """The plan of an earlier start with the same models on the same machine, or a new one.

    With `engine_threads` set there is nothing to plan or measure.
    """
    if settings.engine_threads is not None:
        return UNMEASURED
    try:
        for row in settings.models:
            specs.check(row.spec, settings.allow_code)
    except ValueError:  # The start reports the problem.
        return UNMEASURED
    path = settings.cache_dir / f"{capacity.PLAN}-{_digest(settings)}.json"
    plan = _cached(path)
    if plan is None:
        log.info("measuring the cost of requests on this machine, once")
        plan = _measured(settings)
        if plan is not None:
            _cache(path, plan)
    return plan or UNMEASURED


def _digest(settings: Settings) -> str:
    """A digest of everything that the costs depend on."""
    facts = [
        processor.model(),
        processor.flags(),
        runtime.cpu_time(),
        sys.version,
        [_version(package) for package in VERSIONED],
        [_row(row) for row in settings.models],
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _row(row: ModelSettings) -> tuple[str, list[int]]:
    """A model's settings, and the identity of its SPEC's file, if any."""
    try:
        status = Path(row.spec).stat()
        file = [status.st_size, status.st_mtime_ns]
    except (OSError, ValueError):
        file = []
    return row.model_dump_json(), file


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _measured(settings: Settings) -> Plan | None:
    """The measurements of `service.cli.trial`; None if it fails, as the start then reports."""
    command = [sys.executable, *logs.launching("service.cli.trial")]
    done = subprocess.run(  # noqa: S603
        command,
        input=settings.model_dump_json(exclude=set(SECRETS)),
        stdout=subprocess.PIPE,  # Its stderr shows the progress of downloads.
        text=True,
        check=False,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )
    try:
        return _read(json.loads(done.stdout))
    except (ValueError, TypeError, KeyError):
        log.debug("the trial exited with status %d", done.returncode)
        return None


def _cached(path: Path) -> Plan | None:
    try:
        return _read(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        log.warning("%s is corrupt and will be replaced", path)
        return None


def _read(values: dict[str, Any]) -> Plan:
    return Plan(float(values["request"]), [Costs(**costs) for costs in values["models"]])


def _cache(path: Path, plan: Plan) -> None:
    # Where nothing can be written, the engines' cache logs the reason.
    with suppress(OSError), files.atomic(path) as file:
        file.write_text(json.dumps(asdict(plan)), "utf-8")
