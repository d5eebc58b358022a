"""How long to wait before retrying a request."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

# Statuses after which a retry may succeed: the queue was full, the service is starting or stopping,
# a proxy cannot reach it. Not 504: by then the deadline has passed.
AGAIN = frozenset({429, 502, 503})
# Seconds: the first wait without a Retry-After, and the longest.
FIRST, LONGEST = 0.1, 5.0
# Random addition to Retry-After, so that clients refused together do not return together.
SPREAD = 0.1
SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds in Retry-After, which may be a number or a date; None: no valid value.

    A date is compared with the response's own Date, so that clocks need not agree.
    """
    text = headers.get("retry-after", "").strip()
    if SECONDS.fullmatch(text):
        return float(text)
    try:
        later, now = map(parsedate_to_datetime, (text, headers.get("date", "")))
        return max(0.0, (later - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # Not a date, or only one with a time zone.
        return None


def pause(attempt: int, delay: float | None) -> float:
    """Seconds to wait after an attempt, counted from 0: slightly more than `delay`, the service's
    advice, or else exponential backoff with jitter."""
    if delay is not None:
        return delay * (1 + SPREAD * random.random())  # noqa: S311
    longest = min(LONGEST, FIRST * 2.0 ** min(attempt, 16))
    return longest * (0.5 + 0.5 * random.random())  # noqa: S311
