from __future__ import annotations

import pytest

from service.http.express import QUERY


@pytest.mark.parametrize(
    ("query", "model", "top_k"),
    [
        (b"", None, None),
        (b"model=resnet50", b"resnet50", None),
        (b"top_k=3", None, b"3"),
        (b"model=resnet20-cifar10&top_k=10", b"resnet20-cifar10", b"10"),
    ],
)
def test_ordinary_queries_go_straight(query: bytes, model: bytes, top_k: bytes) -> None:
    found = QUERY.fullmatch(query)
    assert found is not None
    assert (found["model"], found["top_k"]) == (model, top_k)


@pytest.mark.parametrize(
    "query",
    [
        b"top_k=0", b"top_k=-1", b"top_k=many", b"top_k=", b"top_k=1&top_k=2", b"top_k=3&model=a",
        b"model=", b"model=a%20b", b"model=a&", b"modeltop_k=1", b"model=a&top_k=1&x=y", b"debug=1",
        b"top_k=1e3", b"top_k=9999999", b"model=a\xff",
    ],
)  # fmt: skip
def test_everything_unusual_takes_the_long_way(query: bytes) -> None:
    assert QUERY.fullmatch(query) is None
