from __future__ import annotations

import pickle

from service.client import Busy
from service.client.exceptions import refusal


def test_refusals_cross_processes() -> None:
    told = Busy(429, "queue_full", "later", "r1", 2.0)
    again = pickle.loads(pickle.dumps(told))
    assert type(again) is Busy
    assert vars(again) == vars(told)


def test_a_page_of_a_proxy_is_quoted_without_its_tags_and_repetitions() -> None:
    page = b"<html>\n<title>502 Bad Gateway</title>\n<h1>502 Bad Gateway</h1><hr>nginx/1.22.1"
    assert str(refusal(502, page, {}, None)) == "502 Bad Gateway: nginx/1.22.1"
    assert str(refusal(502, b"no upstream", {}, None)) == "502 Bad Gateway: no upstream"
