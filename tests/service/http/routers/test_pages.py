from __future__ import annotations

from importlib import resources
from types import SimpleNamespace
from typing import Any, cast

from service.http.routers.pages import PAGE_HEADERS, WEB, web_page


def test_each_file_of_the_pages_is_served() -> None:
    files = {file.name for file in resources.files("service.http.web").iterdir() if file.is_file()}
    assert files - {"__init__.py"} == {*WEB}


def test_a_page_has_the_version_of_the_service() -> None:
    request: Any = SimpleNamespace(app=SimpleNamespace(version="1.2<3"))
    for name in ("index.html", "docs.html"):
        response = web_page(name, request)
        text = cast("bytes", response.body).decode()
        assert "1.2&lt;3" in text
        assert "{version}" not in text
        assert (
            response.headers["Content-Security-Policy"] == PAGE_HEADERS["Content-Security-Policy"]
        )
