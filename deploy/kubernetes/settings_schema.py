"""Writes the schema of a settings file into the Helm chart's schema of values, and beside it the
variables that Compose hands to the service.

python -m deploy.kubernetes.settings_schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.compose import variables
from service.config.settings import Settings

CHART = Path(__file__).parent / "chart"
FILE = CHART / "values.schema.json"
# The chart sets these itself, from `keys`, `tls` and `cache`; pods have no unix sockets.
OF_THE_CHART = {
    "socket_mode",
    "api_keys",
    "api_keys_file",
    "admin_keys",
    "admin_keys_file",
    "tls_certificate",
    "tls_key",
    "cache_dir",
}
# The chart counts with them.
NEEDED = ["shutdown_grace_s", "shutdown_timeout_s"]


def of_settings() -> dict[str, Any]:
    """The schema's `$defs`: settings and models as `service.config.settings` describes them."""
    whole = _without_noise(Settings.model_json_schema())
    models = whole.pop("$defs")
    settings = dict(whole["properties"])
    for name in OF_THE_CHART:
        del settings[name]
    return {"Settings": whole | {"properties": settings, "required": NEEDED}, **models}


def _without_noise(schema: Any) -> Any:
    """Without titles, which repeat names, and defaults, which some machines compute."""
    if isinstance(schema, list):
        return [_without_noise(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: _without_noise(rule) for key, rule in value.items()}
        if name in ("properties", "$defs")
        else _without_noise(value)
        for name, value in schema.items()
        if name not in ("title", "default")
    }


def write() -> None:
    content = json.loads(FILE.read_text("utf-8"))
    content["$defs"] |= of_settings()
    FILE.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    write()
    variables.write()
