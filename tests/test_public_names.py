"""What users import stays where it is."""

from __future__ import annotations

import subprocess
import sys

import models

PUBLIC = {
    "Architecture",
    "Bundle",
    "BundleError",
    "Classifier",
    "InputSpec",
    "ResNet",
    "Variant",
    "WeightsMismatch",
    "build",
    "count_layers",
    "count_macs",
    "count_parameters",
    "from_network",
    "load",
    "names",
    "read",
    "resize_and_crop",
    "variant",
    "write",
}


def test_the_public_names_are_these_and_all_resolve() -> None:
    assert set(models.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(models, name).__module__.startswith("models.")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, service.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
