"""What a user says of a file, as the options of `convert` are named."""

from __future__ import annotations

from typing import Any

from models.interchange.imported import INPUT, Said


def said(**options: Any) -> Said:
    prepared = {name: options.pop(name) for name in INPUT if name in options}
    return Said(input=prepared, **options)
