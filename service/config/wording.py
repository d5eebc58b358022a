"""pydantic's errors in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

_LIBRARY = frozenset(get_args(ErrorType))

_WORDS = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "list_type": "must be a list",
    "set_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "invalid_key": "must have keys that are text",
    "recursion_loop": "must not contain itself",
    "extra_forbidden": "is not known here",
    "path_type": "must be a path",
    "missing": "is missing",
    "none_required": "must be left out",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
    "literal_error": "must be {expected}",
    "json_invalid": "is not JSON: {error}",
    "json_type": "is not JSON",
}
# Of errors whose words are our own; all others of the library get these.
UNKNOWN = "has a value that cannot be used"
QUOTED = 100  # characters of a value that a message quotes


def is_ours(error: ErrorDetails) -> bool:
    """Whether its words are our own."""
    return error["type"] not in _LIBRARY


def in_words(error: ErrorDetails) -> str:
    """What the value must be, to follow its name."""
    context: Mapping[str, Any] = error.get("ctx", {})
    words = _WORDS.get(error["type"])
    if words:
        said = words.format(**{key: _plain(value) for key, value in context.items()})
        return re.sub(r"\b1 (item|character)s$", r"1 \1", said)
    # An error of ours has a type that the library does not know, and its own text.
    return UNKNOWN if error["type"] in _LIBRARY else error["msg"]


def but_is(value: Any) -> str:
    """What a value is instead, as it is written in YAML and JSON, cut if it is long."""
    if value is None:
        return "; it has no value"
    if value == "":
        return "; it is empty"
    if isinstance(value, str):
        text = repr(value if len(value) <= QUOTED else f"{value[:QUOTED]}...")
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list | tuple | set | frozenset):
        text = f"a list of {len(value)}" if value else "an empty list"
    elif isinstance(value, dict):
        text = "a mapping" if value else "an empty mapping"
    elif isinstance(value, bytes):
        text = "binary data"
    else:
        text = str(value)[:QUOTED]
    return f", not {text}"


def _plain(value: Any) -> Any:
    """Limits of floats, such as 0.0, are written as whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
