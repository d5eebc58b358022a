"""What settings demand of SPECs."""

from __future__ import annotations

from pathlib import Path

from models.interchange.formats import SPEC_KINDS
from service.errors import ConfigError


def check_folder(spec: str, folder: Path | None) -> None:
    """Refuses a file outside `folder`, whether or not it exists: who may name SPECs over HTTP must
    not learn what else is on the machine.

    Raises:
        ConfigError: one line with the spec and the problem.
    """
    if spec.startswith(SPEC_KINDS):
        return
    try:
        inside = folder is not None and Path(spec).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no path, or links in a circle
        inside = False
    if not inside:
        raise ConfigError(
            f"{spec}: not among the files that may be served over HTTP: those in model_folder"
            f"{'' if folder else ', which is not set,'} and those of the configuration"
        )


def check_calibration(precision: str, *, calibrated: bool) -> None:
    """Raises ConfigError: the precision needs a calibrated bundle, and this is none."""
    if precision == "int8" and not calibrated:
        raise ConfigError(
            "precision: int8 needs a calibrated bundle; "
            "`resnet-serve calibrate --model SPEC IMAGES OUT.safetensors` makes one"
        )
