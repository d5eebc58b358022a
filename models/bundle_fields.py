"""Checks of a bundle's fields, each alone; a ValueError says in one line what is wrong."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from models.architecture import Architecture
from models.plain_numbers import number
from models.preprocess import InputSpec

TYPES: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "architecture": (Architecture, "an Architecture"),
    "input": (InputSpec, "an InputSpec"),
    "provenance": (dict, "a dict"),
    "metrics": (dict, "a dict"),
    "calibration": (dict, "a dict"),
    "card": (str, "text"),
}
# Dividing logits by temperatures outside these limits could overflow float32.
TEMPERATURES = (1e-6, 1e6)
CARD_BYTES = 20_000


def check_types(bundle: object) -> None:
    """Raises ValueError unless the fields in TYPES are of these types."""
    for name, (kind, called) in TYPES.items():
        if not isinstance(value := getattr(bundle, name), kind):
            raise ValueError(f"{name} must be {called}, not {value!r}")  # noqa: TRY004 - of a file


def checked_labels(value: object) -> tuple[str, ...]:
    """The labels of the classes, in their order: a set has none, a mapping perhaps another one."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
    labels = tuple(str(label) for label in listed if isinstance(label, str))
    if len(labels) != len(listed):
        raise ValueError("labels must be a list of texts, in the order of the classes")
    return labels


def checked_temperature(value: object) -> float:
    least, most = TEMPERATURES
    plain = number(value)
    if plain is None or not least <= plain <= most:
        raise ValueError(f"temperature must be a number from {least:g} to {most:g}, not {value!r}")
    return float(plain)


def check_card(card: str) -> None:
    try:
        size = len(card.encode())
    except UnicodeEncodeError:
        raise ValueError("card must be whole Unicode text: it holds half a character") from None
    if size > CARD_BYTES:
        raise ValueError(f"card must have at most {CARD_BYTES} bytes, not {size}")
    control = next((c for c in card if unicodedata.category(c) == "Cc" and c not in "\t\n\r"), "")
    if control:
        raise ValueError(f"card must be Markdown text, without the control character {control!r}")
