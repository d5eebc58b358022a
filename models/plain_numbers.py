"""Numbers as Python's own, which JSON can write: NumPy's are taken too, truth values are not."""

from __future__ import annotations

from numbers import Integral, Real


def integer(value: object) -> int | None:
    """`value` if it is an integer, else None."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def number(value: object) -> int | float | None:
    """`value` if it is an integer or a real number, else None."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    return integer(value)
