"""pydantic's errors in our words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

_WORDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "path_type": "must be a path",
    "missing": "is missing",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "json_invalid": "is not JSON: {error}",
}


def in_words(error: ErrorDetails) -> str:
    """What the value must be, to follow its name."""
    context: Mapping[str, Any] = error.get("ctx", {})
    words = _WORDS.get(error["type"])
    if words:
        return words.format(**{key: _plain(value) for key, value in context.items()})
    message = error["msg"]
    return (
        (message[0].lower() + message[1:])
        .replace("input should", "must")
        .replace(" should ", " must ")
    )


def _plain(value: Any) -> Any:
    """Limits of floats, such as 0.0, are written as whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
