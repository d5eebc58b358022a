"""What `serve run` and `serve deploy` build: an ingress, and a deployment for each model."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from service.config import loading
from service.config.settings import ModelSettings, Settings
from service.config.sources import SECRETS
from service.errors import ConfigError
from service.ray import router
from service.ray.ingress import Ingress
from service.ray.replica import Replica

log = logging.getLogger(__name__)
INGRESS = "ingress"
# A new version is started before the old one ends, so that there is no moment without any.
SURGE_PERCENT = 100
DRAIN_LOOK_SECONDS = 0.5
# Ray counts also those that it is just handing over.
LEAST_QUEUED = 100
# A line for each call would add to the load; ours says what was refused, and why.
QUIET = {"enable_access_log": False}


def app(args: dict[str, Any]) -> Application:
    """The application of a configuration.

    `args` are settings, as a file of them has them; or `config`, the path of such a file, and
    settings that win over it, as flags do. RESNET_SERVE_* variables count as ever.

    Raises:
        ConfigError: a setting cannot be, or two models have the same name.
    """
    given = dict(args)
    config = given.pop("config", None)
    settings = loading.load(given, config=config) if config else loading.load(config=given)
    if not (settings.api_keys or settings.admin_keys or settings.allow_anonymous):
        log.warning("anyone who reaches Ray's proxies can use the models; api_keys requires keys")
    told = settings.model_dump(mode="json", exclude_unset=True, exclude={"models"}, context=SECRETS)
    rows = [row.model_dump(mode="json", exclude_unset=True) for row in settings.models]
    # Engines need no keys.
    private = told.keys() & {*SECRETS, *(f"{name}_file" for name in SECRETS)}
    shared = {name: value for name, value in told.items() if name not in private}
    models = [
        serve.deployment(**_options(row, name, settings))(Replica).bind(
            shared | {"models": [plain]}
        )
        for row, plain, name in zip(settings.models, rows, _names(settings), strict=True)
    ]
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_connections,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        max_surge_percent=SURGE_PERCENT,
        logging_config=QUIET,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s,
    )
    bound: Application = ingress(serve.ingress()(Ingress)).bind(told | {"models": rows}, *models)
    return bound


def _options(row: ModelSettings, name: str, settings: Settings) -> dict[str, Any]:
    """How Ray runs a model, unless the deployment's own options say otherwise."""
    devices = [row.device] if isinstance(row.device, str) else row.device
    return {
        "name": name,
        # Our own queue refuses first, and knows how long it takes.
        "max_ongoing_requests": 2 * row.max_queue,
        "max_queued_requests": max(LEAST_QUEUED, row.max_queue),
        "max_surge_percent": SURGE_PERCENT,
        "request_router_config": RequestRouterConfig(request_router_class=router.PATH),
        "logging_config": QUIET,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOK_SECONDS,
        "graceful_shutdown_timeout_s": settings.shutdown_timeout_s,
        "ray_actor_options": {
            "num_cpus": 1,
            "num_gpus": sum(device.startswith("cuda") for device in devices),
        },
    }


def _names(settings: Settings) -> list[str]:
    """Those of the models' deployments: a model's name, else the end of its SPEC."""
    names: list[str] = []
    for index, row in enumerate(settings.models):
        name = row.name or re.sub(r"[^A-Za-z0-9._-]", "-", Path(row.spec.split(":")[-1]).stem)
        if name in (*names, INGRESS, ""):
            raise ConfigError(f"models[{index}].name: {name!r} is already used; choose another")
        names.append(name)
    return names
