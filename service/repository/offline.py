"""The serving engines for commands, without a server."""

from __future__ import annotations

from typing import Any

from models.bundle import Bundle
from service.config import loading
from service.engines.devices import devices_of, engines_for
from service.engines.engine import Warm
from service.engines.start import blueprint_of, start_first
from service.repository import catalog


def open_model(spec: str, **flags: Any) -> tuple[Bundle, Warm]:
    """The bundle that `spec` names and a warm engine for it; `flags` as those of `serve`.

    Raises:
        ConfigError: see `service.config.loading.load` and `service.repository.catalog.load`.
    """
    bundle = catalog.load(spec, allow=flags.get("allow_code")).bundle
    return bundle, warm(bundle, **flags)


def warm(bundle: Bundle, **flags: Any) -> Warm:
    """A warm engine for `bundle`, with the flags and the environment of `serve`."""
    settings = loading.load({"models": [bundle.name], **flags})
    model = settings.models[0]
    device = devices_of(model)[0]
    blueprint = blueprint_of(bundle, model, device, settings)
    kinds = engines_for(model, device)[:1]
    return start_first(kinds, blueprint, model.parity_tolerance)
