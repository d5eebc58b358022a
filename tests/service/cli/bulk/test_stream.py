from __future__ import annotations

import threading

from service.cli.bulk.stream import _ahead


def test_what_is_fetched_ahead_is_bounded_and_ends_with_its_user() -> None:
    given = iter(range(100))
    before = threading.active_count()
    ahead = _ahead(given, 2)
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert threading.active_count() == before
    assert next(given) <= 6
