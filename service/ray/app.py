"""The Ray Serve application: an ingress, and a deployment for each model."""

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
# A new version starts before the old one stops, so that one always serves.
SURGE_PERCENT = 100
DRAIN_POLL_SECONDS = 0.5
# Ray also counts requests that it is just handing over.
MIN_QUEUED = 100
# A line for each call would add to the load; our log lists refusals and reasons.
QUIET = {"enable_access_log": False}


def app(args: dict[str, Any]) -> Application:
    """Builds the application of a configuration, for `serve run` and `serve deploy`.

    `args` are settings in the form of a settings file; or `config`, the path of such a file, and
    settings that override it, as flags do. RESNET_SERVE_* variables apply as usual.

    Raises:
        ConfigError: a setting is invalid, or two models have the same name.
    """
    overrides = dict(args)
    config = overrides.pop("config", None)
    settings = loading.load(overrides, config=config) if config else loading.load(config=overrides)
    if not (settings.api_keys or settings.admin_keys or settings.allow_anonymous):
        log.warning("Ray's proxies serve the models without authentication; set api_keys")
    fields = settings.model_dump(
        mode="json", exclude_unset=True, exclude={"models"}, context=SECRETS
    )
    models = [model.model_dump(mode="json", exclude_unset=True) for model in settings.models]
    # Engines need no keys.
    private = fields.keys() & {*SECRETS, *(f"{name}_file" for name in SECRETS)}
    shared = {name: value for name, value in fields.items() if name not in private}
    deployments = [
        serve.deployment(**_options(model, name, settings))(Replica).bind(
            shared | {"models": [model_fields]}
        )
        for model, model_fields, name in zip(settings.models, models, _names(settings), strict=True)
    ]
    ingress = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_connections,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        max_surge_percent=SURGE_PERCENT,
        logging_config=QUIET,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s,
    )
    bound: Application = ingress(serve.ingress()(Ingress)).bind(
        fields | {"models": models}, *deployments
    )
    return bound


def _options(model: ModelSettings, name: str, settings: Settings) -> dict[str, Any]:
    """Ray's defaults for a model's deployment, which its own options override."""
    devices = [model.device] if isinstance(model.device, str) else model.device
    max_queue = model.limits(devices).max_queue  # Only the replica knows what "auto" is.
    return {
        "name": name,
        # Our own queue refuses first, as it can estimate the wait.
        "max_ongoing_requests": 2 * max_queue,
        "max_queued_requests": max(MIN_QUEUED, max_queue),
        "max_surge_percent": SURGE_PERCENT,
        "request_router_config": RequestRouterConfig(request_router_class=router.PATH),
        "logging_config": QUIET,
        "graceful_shutdown_wait_loop_s": DRAIN_POLL_SECONDS,
        "graceful_shutdown_timeout_s": settings.shutdown_timeout_s,
        "ray_actor_options": {
            "num_cpus": 1,
            "num_gpus": sum(device.startswith("cuda") for device in devices),
        },
    }


def _names(settings: Settings) -> list[str]:
    """The names of the deployments: a model's name, else the end of its SPEC."""
    names: list[str] = []
    for index, model in enumerate(settings.models):
        name = model.name or re.sub(r"[^A-Za-z0-9._-]", "-", Path(model.spec.split(":")[-1]).stem)
        if name in (*names, INGRESS, ""):
            raise ConfigError(f"models[{index}].name: {name!r} is already in use; choose another")
        names.append(name)
    return names
