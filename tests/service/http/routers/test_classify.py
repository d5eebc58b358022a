from __future__ import annotations

import pytest

from service.errors import BadParameter
from service.http.routers.classify import query_of


@pytest.mark.parametrize(
    ("query", "model", "top_k"),
    [
        (b"", None, None),
        (b"model=resnet50", "resnet50", None),
        (b"top_k=3", None, 3),
        (b"model=resnet20-cifar10&top_k=10", "resnet20-cifar10", 10),
        (b"top_k=3&model=a", "a", 3),
        (b"model=", "", None),
        (b"model=a%20b", "a b", None),
        (b"model=a&", "a", None),
        (b"model=a\xff", "aÿ", None),
    ],
)
def test_a_query_names_a_model_and_a_number(
    query: bytes, model: str | None, top_k: int | None
) -> None:
    found = query_of({"query_string": query})
    assert (found.model, found.top_k) == (model, top_k)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"top_k=0", "top_k must be at least 1, not '0'"),
        (b"top_k=-1", "top_k must be at least 1, not '-1'"),
        (b"top_k=many", "top_k must be a whole number, not 'many'"),
        (b"top_k=", "top_k must be a whole number, not ''"),
        (b"top_k=1e3", "top_k must be a whole number, not '1e3'"),
    ],
)
def test_a_number_that_is_none_is_refused(query: bytes, message: str) -> None:
    with pytest.raises(BadParameter, match=f"^{message}"):
        query_of({"query_string": query})
