"""How many processes and threads serve: planned from what requests cost on this machine.

The costs are measured before the first start, by `service.cli.trial` in a process of its own:
nothing disturbs it, and the memory that measuring and compiling take ends with it. They are kept
beside the compiled engines, so that every later start only reads them. This module needs no torch.
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
from service import runtime
from service.config import capacity, specs
from service.config.capacity import Costs
from service.config.settings import ModelSettings, Settings, environment
from service.config.sources import SECRETS
from service.errors import ConfigError

log = logging.getLogger(__name__)
VERSIONED = ("resnet-serve", "torch", "openvino", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True)
class Plan:
    """`request`: seconds of CPU time that a request's HTTP takes; `models`: what an image costs in
    all, for each model that computes on the CPU with threads of our choice."""

    request: float
    models: Sequence[Costs] = ()

    def applied(self, settings: Settings) -> Settings:
        """The settings with what they leave open filled in: for the model that needs most."""
        available = runtime.cpu_time()
        given = settings.model_fields_set
        if not self.models:
            return settings
        workers = settings.workers
        if "workers" not in given:
            workers = max(capacity.front_ends(costs, available) for costs in self.models)
        decoders = settings.decode_threads
        if "decode_threads" not in given:
            decoders = max(
                capacity.decode_threads(costs, available, workers) for costs in self.models
            )
        return settings.model_copy(update={"workers": workers, "decode_threads": decoders})


UNMEASURED = Plan(capacity.USUAL_REQUEST)


def plan(settings: Settings) -> Plan:
    """As it was made at an earlier start of the same models on the same machine, else made now.

    Whoever sets `engine_threads` needs none, and nothing is measured.
    """
    if settings.engine_threads is not None:
        return UNMEASURED
    try:
        for row in settings.models:
            specs.check(row.spec)
    except ConfigError:  # The start says what is wrong.
        return UNMEASURED
    path = settings.cache_dir / f"{capacity.PLAN}-{_digest(settings)}.json"
    found = _kept(path)
    if found is None:
        log.info("measuring what requests cost on this machine, once")
        found = _measured(settings)
        if found is not None:
            _keep(path, found)
    return found or UNMEASURED


def _digest(settings: Settings) -> str:
    """Of all that the costs depend on."""
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
    """A model's settings, and which file its SPEC names, if any."""
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
    """What `service.cli.trial` measures; None where it cannot, which the start will say, too."""
    command = [sys.executable, "-P", "-m", "service.cli.trial"]
    done = subprocess.run(  # noqa: S603
        command,
        input=settings.model_dump_json(exclude=set(SECRETS)),
        stdout=subprocess.PIPE,  # It shows on stderr how a download gets on.
        text=True,
        check=False,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )
    try:
        return _read(json.loads(done.stdout))
    except (ValueError, TypeError, KeyError):
        log.debug("the trial ended with status %d", done.returncode)
        return None


def _kept(path: Path) -> Plan | None:
    try:
        return _read(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        log.warning("%s is corrupt and will be replaced", path)
        return None


def _read(values: dict[str, Any]) -> Plan:
    return Plan(float(values["request"]), [Costs(**costs) for costs in values["models"]])


def _keep(path: Path, plan: Plan) -> None:
    # Where nothing can be written, the engines' cache says why.
    with suppress(OSError), files.atomic(path) as file:
        file.write_text(json.dumps(asdict(plan)), "utf-8")
