from __future__ import annotations

import pytest

from service.client.retry import AGAIN, pause, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "9" * 5000}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        (
            {
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
                "retry-after": "Wed, 21 Oct 2015 07:28:05 GMT",
            },
            5.0,
        ),
        (
            {
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
                "retry-after": "Wed, 21 Oct 2015 07:27:00 GMT",
            },
            0.0,
        ),
        (
            {"date": "Wed, 21 Oct 2015 07:28:00", "retry-after": "Wed, 21 Oct 2015 07:29:00 GMT"},
            None,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, None),
    ],
)
def test_retry_after_as_seconds_and_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds


def test_waits_grow_and_differ_and_never_undercut_what_was_told() -> None:
    for attempt in (0, 3, 10_000):
        waits = {pause(attempt, None) for _ in range(50)}
        bound = min(5.0, 0.1 * 2**attempt) if attempt < 20 else 5.0
        assert len(waits) > 1
        assert bound / 2 <= min(waits) <= max(waits) <= bound
    told = {pause(0, 4.0) for _ in range(50)}
    assert len(told) > 1
    assert 4.0 <= min(told) <= max(told) <= 4.4
    assert 504 not in AGAIN
