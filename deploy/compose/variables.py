"""Writes service.env, the variables that Compose hands to the service.

python -m deploy.compose.variables
"""

from __future__ import annotations

from pathlib import Path

from service.config.loading import MODEL_WIDE
from service.config.settings import Settings
from service.config.variables import PREFIX

FILE = Path(__file__).parent / "service.env"
HEAD = """\
# Written by `python -m deploy.compose.variables`. config/service.env overrides it.

# The default: only this host can reach the published ports.
RESNET_SERVE_ALLOW_ANONYMOUS=${RESNET_SERVE_ALLOW_ANONYMOUS:-true}
# A volume.
RESNET_SERVE_CACHE_DIR=/cache
# On disk, as downloads pass through it. It is also where `engine: compile` loads code from, in an
# image of your own with a C++ compiler, and may therefore not be /tmp. No engine of these images,
# on CPUs or on GPUs, loads code that it did not come with.
TMPDIR=/cache

# Compose takes these from the shell or from .env; what is set nowhere does not reach the service.
# HOST and PORT are missing, as the shell's are seldom meant for the container.
"""
# Of downloads.
OTHERS = ("HF_ENDPOINT", "HF_TOKEN")
# Of the container, whatever the shell has; config/service.env can set them.
INSIDE = ("allow_anonymous", "cache_dir", "host", "port")


def written() -> str:
    """The file's text."""
    settings = ["config", *Settings.model_fields, *MODEL_WIDE]
    ours = [f"{PREFIX}{name.upper()}" for name in settings if name not in INSIDE]
    return HEAD + "".join(f"{name}\n" for name in sorted((*ours, *OTHERS)))


def write() -> None:
    FILE.write_text(written(), "utf-8")


if __name__ == "__main__":
    write()
