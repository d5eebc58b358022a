"""A service's metrics as plain numbers."""

from __future__ import annotations

import http.client
import re
import time
from collections import defaultdict
from urllib.parse import urlsplit

LOOK_SECONDS = 0.25


def counts(url: str) -> dict[str, float]:
    """The service's metrics, as `sums` has them."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", "/metrics")
        return sums(connection.getresponse().read().decode())
    finally:
        connection.close()


def settled(url: str) -> dict[str, float]:
    """The metrics once nothing of an earlier load is under way."""
    while (found := counts(url))["resnet_serve_requests_in_flight"] > 1:
        time.sleep(LOOK_SECONDS)
    return found


def sums(text: str) -> dict[str, float]:
    """Sums over models of an exposition by name; of refusals by `refusals:REASON`."""
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            if name == "resnet_serve_refusals_total":
                reason = re.search(r'reason="(\w+)"', labels)
                name = f"refusals:{reason[1] if reason else ''}"
            found[name] += float(value)
    return found
