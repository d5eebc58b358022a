"""How long to wait before a request is sent again."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

# Answers after which the same request may succeed: the queue was full, the service loads or ends,
# a proxy does not reach it. After a 504 nobody would wait for the answer any more.
AGAIN = frozenset({429, 502, 503})
# Seconds: the first wait without a Retry-After, and the longest.
FIRST, LONGEST = 0.1, 5.0
# Of what Retry-After says, so that those who were refused together do not come back together.
SPREAD = 0.1
SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that Retry-After says, as a number or as a date; None: it says nothing.

    A date is compared with the answer's own Date: whose clock is right does not matter.
    """
    text = headers.get("retry-after", "").strip()
    if SECONDS.fullmatch(text):
        return float(text)
    try:
        later, now = (parsedate_to_datetime(each) for each in (text, headers.get("date", "")))
        return max(0.0, (later - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # No date, or only one of them with a zone.
        return None


def pause(attempt: int, told: float | None) -> float:
    """Seconds to wait after the attempt with this number, from 0: as long as the service said and
    a little longer; else twice as long each time, but for a random part."""
    if told is not None:
        return told * (1 + SPREAD * random.random())  # noqa: S311
    longest = min(LONGEST, FIRST * 2.0 ** min(attempt, 16))
    return longest * (0.5 + 0.5 * random.random())  # noqa: S311
