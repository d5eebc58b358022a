"""The engines that serve, without a server."""

from __future__ import annotations

from models.bundle import Bundle
from service import catalog, engines
from service import settings as configuration
from service.engines import Warm


def open_model(spec: str, **flags: str | None) -> tuple[Bundle, Warm]:
    """The bundle that `spec` names and a warm engine for it; `flags` as those of `serve`.

    Raises:
        ConfigError: see `service.settings.load` and `service.catalog.load`.
    """
    bundle = catalog.load(spec).bundle
    return bundle, warm(bundle, **flags)


def warm(bundle: Bundle, **flags: str | None) -> Warm:
    """A warm engine for `bundle`, by the flags of `serve` and by its environment."""
    settings = configuration.load({"models": [bundle.name], **flags})
    model = settings.models[0]
    device = engines.devices(model)[0]
    blueprint = engines.blueprint(bundle, model, device, settings)
    kinds = engines.engines_for(model, device)[:1]
    return engines.start_any(kinds, blueprint, model.parity_tolerance)
