"""Why a file is not YAML, in our words: the parser may quote the file, which may hold keys."""

from __future__ import annotations

import re

import yaml

# What PyYAML says, and what is usually wrong; the first that fits.
REASONS = (
    (r"mapping values are not allowed", "a colon where none fits; check the indentation and "
     "the line before, and quote values that have a colon"),
    (r"could not find expected ':'", "a key without its colon"),
    (r"found character '\\t'", "a tab; indent with spaces"),
    (r"cannot start any token", "a value that begins with a special character; quote it"),
    (r"but (found|got) '<(stream end|document)", "a bracket or brace is not closed"),
    (r"expected ',' or", "a comma, or a closing bracket or brace, is missing"),
    (r"expected <block end>", "the indentation does not fit the lines above"),
    (r"while scanning a quoted|unexpected end of stream", "a quote is not closed"),
    (r"unknown escape character", "an unknown escape; use single quotes"),
    (r"undefined alias|alphabetic or numeric", "a value that begins with * or &; quote it"),
    (r"constructor for the tag|scanning a (tag|directive)", "a value that begins with ! or %; "
     "quote it"),
    (r"unhashable key|unacceptable key", "a list or mapping as a key"),
    (r"expected a single document", "several documents; keep one, without ---"),
    (r"special characters are not allowed|unacceptable character", "a control character; remove "
     "it"),
    (r"while constructing|expected (a|chars)", "a value that is not of its type; quote it"),
)  # fmt: skip
UNKNOWN = "something that no rule of YAML allows; check indentation, quotes and brackets"


def line_of(error: Exception) -> int:
    """The line of the fault, from 1; 0 if the parser does not know."""
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 0


def reason_of(error: Exception) -> str:
    """What is wrong with a file that could not be read; it never quotes the file."""
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, UnicodeDecodeError):
        return "not YAML: not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, yaml.YAMLError):  # Of a value that only looks like a number or date.
        return f"not YAML: {REASONS[-1][1]}"
    said = f"{getattr(error, 'context', '') or ''} {getattr(error, 'problem', '') or error}"
    why = next((ours for theirs, ours in REASONS if re.search(theirs, said)), UNKNOWN)
    mark = getattr(error, "problem_mark", None)
    return f"not YAML: {why}" + (f" (column {mark.column + 1})" if mark else "")
