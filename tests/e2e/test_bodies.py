"""What a request's body may be, as real clients send it, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import io
import json
import shutil
import subprocess
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import httpx
import pytest
import requests

from tests.conftest import Service, client, encoded, started
from tests.support.hostile.wire import FORM, part
from tests.support.senders import PROGRAMS

IMAGE = encoded()
TEXT = base64.b64encode(IMAGE).decode()
JSON = {"Content-Type": "application/json"}
LARGE = encoded("BMP", (900, 800))  # 2 MB: over what parsers allow for a text
MOST = 4 * 2**20
Headers = dict[str, str]


@pytest.fixture(scope="module")
def limited() -> Iterator[Service]:
    models = ("--model", "builtin:resnet20-cifar10", "--model", "random:resnet20")
    with started(*models, "--precision", "fp32", RESNET_SERVE_MAX_BODY_BYTES=str(MOST)) as running:
        yield running


def post(
    service: Service, body: bytes | str, headers: Headers | None = None, path: str = "/v1/classify"
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Sent as it is: no header but these is added."""
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)) as connection:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


def predictions(service: Service, image: bytes = IMAGE) -> Any:
    return client.post(f"{service.url}/v1/classify", content=image).json()["predictions"]


def answered(service: Service, body: bytes | str, headers: Headers, image: bytes = IMAGE) -> None:
    """The answer must be that for the image's bytes."""
    status, found, _ = post(service, body, headers)
    assert status == 200, found
    assert found["predictions"] == predictions(service, image)


def refused(
    service: Service,
    status: int,
    words: str,
    body: bytes | str,
    headers: Headers | None = None,
    path: str = "/v1/classify",
) -> None:
    got, problem, sent = post(service, body, headers, path)
    assert got == status, problem
    assert sent["content-type"] == "application/problem+json"
    assert words in problem["detail"], problem["detail"]


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--gate--\r\n"


# Content types


@pytest.mark.parametrize(
    "kind",
    ["image/jpeg", "application/octet-stream", "binary/octet-stream", "application/x-image",
     "application/x-www-form-urlencoded", "text/plain", "text/plain; charset=utf-8", "text/html",
     "video/mp4", "application/json", "multipart/form-data", "multipart/form-data; boundary=x",
     "nonsense", "", ";;;", "IMAGE/PNG", "*/*"],
)  # fmt: skip
def test_an_image_is_taken_whatever_type_it_comes_with(service: Service, kind: str) -> None:
    answered(service, IMAGE, {"Content-Type": kind})


def test_an_image_is_taken_without_a_type(service: Service) -> None:
    answered(service, IMAGE, {})


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "", "image/x-none"])
def test_other_bytes_of_a_type_that_says_little_are_for_the_decoder(
    service: Service, kind: str
) -> None:
    refused(service, 400, "", b"%PDF-1.7", {"Content-Type": kind})


@pytest.mark.parametrize(
    ("kind", "body", "seen"),
    [
        ("text/html", b"<!doctype html>", "'text/html', and the body is an HTML page; send"),
        ("application/pdf", b"%PDF-1.7", "the body is a PDF document"),
        ("text/csv", b"1,2,3", "'text/csv', and the body is no image"),
        ("application/xml", b"{}", "'application/xml', and the body is JSON"),
    ],
)
def test_a_type_that_says_otherwise_and_bytes_of_no_image_are_415(
    service: Service, kind: str, body: bytes, seen: str
) -> None:
    refused(service, 415, seen, body, {"Content-Type": kind})


@pytest.mark.parametrize("kind", ["image/png", "", "application/json", "text/html"])
def test_an_empty_body_is_400(service: Service, kind: str) -> None:
    refused(service, 400, "empty", b"", {"Content-Type": kind})


def test_every_route_for_images_takes_every_body(service: Service) -> None:
    for path in ("/v1/embed", "/v1/explain", "/v1/classify/batch"):
        for body, kind in (
            (IMAGE, "text/plain"),
            (json.dumps({"image": TEXT}), "application/json"),
            (form(part(name="file")), FORM),
        ):
            status, found, _ = post(service, body, {"Content-Type": kind}, path)
            assert status == 200, found


# Forms


@pytest.mark.parametrize(
    "parts",
    [
        (part(name="file"),),
        (part(filename=None),),
        (part(filename=""),),
        (part(filename="", more="Content-Type: image/png\r\n"),),
        (part(filename=None, more="Content-Type: image/png\r\n"),),
        (b"--gate\r\nContent-Disposition: form-data; name=image; filename*=UTF-8''%e2%82%ac.png"
         b"\r\n\r\n" + IMAGE + b"\r\n",),
        (b"--gate\r\nContent-Type: image/png\r\n\r\n" + IMAGE + b"\r\n",),
        (part(filename=b'a\\"b;c=d.png'),),
        (part(filename=b"C:\\photos\\"),),
        (part(filename="\u7532\u4e59.png"),),
        (part(TEXT.encode(), filename=None),),
        (part(f"data:image/png;base64,{TEXT}".encode(), "photo", None),),
        (part(TEXT.encode(), more="Content-Transfer-Encoding: base64\r\n"),),
        (part(more="Content-Transfer-Encoding: binary\r\n"),),
        (part(b"a ship", "note", None), part(), part(b"", "other", "")),
        (part(b'{"taken": 1}', "metadata", None, "Content-Type: application/json\r\n"), part()),
    ],
    ids=["other name", "no filename", "empty filename", "empty filename and a type", "only a type",
         "only filename*", "no disposition", "quotes in its name", "a backslash at the end",
         "other scripts", "base64", "data URL", "transfer encoding", "binary", "other fields",
         "JSON beside it"],
)  # fmt: skip
def test_a_form_with_one_image_is_taken(service: Service, parts: tuple[bytes, ...]) -> None:
    answered(service, form(*parts), {"Content-Type": FORM})


@pytest.mark.parametrize("filename", ["a.bmp", None])
@pytest.mark.parametrize("kind", ["", "Content-Type: image/bmp\r\n"])
def test_a_file_in_a_form_may_be_large(service: Service, filename: str | None, kind: str) -> None:
    body = form(part(LARGE, filename=filename, more=kind))
    answered(service, body, {"Content-Type": FORM}, LARGE)
    text = form(part(base64.encodebytes(LARGE), filename=None))
    answered(service, text, {"Content-Type": FORM}, LARGE)


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ((part(), part(name="mask")), 422, "several files; this endpoint takes one image"),
        ((part(filename=None), part(name="mask")), 422, "several files"),
        ((part(b"ship.png", filename=None),), 422, "-F image=@FILE"),
        ((part(), part(b"3", "top_k", None)), 422, "'top_k' is a parameter; send it in the URL"),
        ((part(), part(b"3", "Top-K", None)), 422, "as ?top_k="),
        ((part(b"hello", "x", None),), 422, "the form has no file; its fields: 'x'"),
        ((part(), part(b"x" * 100_000, "x", None)), 400, "100000 bytes, which are not an image"),
        ((part(more="Content-Transfer-Encoding: quoted-printable\r\n"),), 415, "quoted-printable"),
        ((part(b"abc!" * 40, more="Content-Transfer-Encoding: base64\r\n"),), 400, "'!' at"),
        ((part(b"x", "", None),), 400, "has no name"),
    ],
)  # fmt: skip
def test_a_form_is_refused_with_what_to_do(
    service: Service, parts: tuple[bytes, ...], status: int, words: str
) -> None:
    refused(service, status, words, form(*parts), {"Content-Type": FORM})


def test_a_form_that_is_no_form_is_refused(service: Service) -> None:
    whole, headers = form(part()), {"Content-Type": FORM}
    refused(service, 400, "truncated", whole[:-12], headers)
    refused(service, 400, "must end with CR LF", whole.replace(b"\r\n", b"\n"), headers)
    refused(service, 400, "is empty", b"", headers)
    other = {"Content-Type": "multipart/form-data; boundary=other"}
    refused(service, 400, "the boundary that its content type names", whole, other)
    refused(service, 400, "no boundary; let", whole, {"Content-Type": "multipart/form-data"})


def test_a_batch_takes_every_file_in_order_with_its_name(service: Service) -> None:
    names = [b"a.png", b"\\\\host\\b.png", "\u7532.png".encode(), b'c\\"d.png']
    fields = ["image", "file", "images[]", "x"]
    parts = [part(name=field, filename=name) for field, name in zip(fields, names, strict=True)]
    parts.append(part(TEXT.encode(), filename=None))
    parts.append(part(b"iVBORw0KGgo!", filename="", name="image"))
    headers = {"Content-Type": FORM}
    status, found, _ = post(service, form(*parts), headers, "/v1/classify/batch")
    assert status == 200
    results = found["results"]
    kept = ["a.png", "\\host\\b.png", "\u7532.png", 'c"d.png', "", ""]
    assert [each["filename"] for each in results] == kept
    assert ["error" in each for each in results] == [False] * 5 + [True]
    assert [each["predictions"] for each in results[:5]] == [predictions(service)] * 5


@pytest.mark.parametrize(
    "body",
    [
        urlencode({"image": TEXT}),
        f"image={TEXT}",
        f"note=x&image={quote(f'data:image/png;base64,{TEXT}')}",
        f"image={quote(IMAGE)}",
        urlencode({"file": IMAGE}),
        json.dumps({"image": TEXT}),
    ],
    ids=["base64", "not escaped", "data URL", "bytes", "bytes with plus", "JSON"],
)
def test_an_urlencoded_form_is_taken(service: Service, body: str) -> None:
    answered(service, body, {"Content-Type": "application/x-www-form-urlencoded"})


def test_an_urlencoded_form_may_be_large(service: Service) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answered(service, urlencode({"image": LARGE}), kind, LARGE)
    answered(service, urlencode({"image": base64.b64encode(LARGE)}), kind, LARGE)
    refused(service, 422, "send it in the URL", urlencode({"image": TEXT, "top_k": 2}), kind)


# JSON


def php(text: str) -> str:
    return text.replace("/", "\\/")


def dotnet(text: str) -> str:
    return text.replace("+", "\\u002B")


DIALECTS: dict[str, Callable[[bytes], str]] = {
    "plain": lambda data: base64.b64encode(data).decode(),
    "unpadded": lambda data: base64.b64encode(data).decode().rstrip("="),
    "url-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "data URL": lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}",
    "escaped lines": lambda data: "\\n".join(textwrap.wrap(base64.b64encode(data).decode(), 76)),
    "bare lines": lambda data: base64.encodebytes(data).decode(),
    "escaped slashes": lambda data: php(base64.b64encode(data).decode()),
    "escaped plus": lambda data: dotnet(base64.b64encode(data).decode()),
}


@pytest.mark.parametrize("image", [IMAGE, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_of_base64_is_taken_in_json(
    service: Service, dialect: str, image: bytes
) -> None:
    answered(service, f'{{"image": "{DIALECTS[dialect](image)}"}}', JSON, image)


@pytest.mark.parametrize(
    "value",
    [{"image": TEXT}, {"b64": TEXT}, {"image": {"b64": TEXT}}, {"images": [TEXT]},
     {"instances": [{"b64": TEXT}]}, {"instances": [{"image_bytes": {"b64": TEXT}}]},
     {"image": TEXT, "filename": "a.png"}],
)  # fmt: skip
def test_every_form_of_json_with_one_image_is_taken(service: Service, value: Any) -> None:
    for kind in ("application/json", "application/vnd.api+json", "", "text/plain"):
        answered(service, json.dumps(value), {"Content-Type": kind})
        answered(service, b"\xef\xbb\xbf \n" + json.dumps(value, indent=1).encode(), JSON)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('{"image": "abcd', 400, "its last string does not end"),
        (f'{{"image": "{TEXT}",}}', 400, f"malformed at byte {len(TEXT) + 13}"),
        ("[1]", 400, 'an object like {"image"'),
        ("{}", 400, "has no image"),
        ('{"image": 1}', 400, "must be base64 text"),
        ('{"image": "https://example.org/a.png"}', 400, "URLs are not fetched"),
        ('{"image": "abc!"}', 400, "'!' at character 3"),
        ('{"images": ["abc!"]}', 400, "images[0]: the base64 text has '!'"),
        (f'{{"instances": [{{"b46": "{TEXT}"}}]}}', 400, "instances[0]: unknown field 'b46'; did "
         "you mean 'b64'?"),
        (f'{{"imgae": "{TEXT}"}}', 400, "did you mean 'image'?"),
        (f'{{"image": "{TEXT}", "image": "{TEXT}"}}', 400, "'image' twice"),
        (f'{{"image": "{TEXT}", "b64": "{TEXT}"}}', 400, "has both 'b64' and 'image'"),
        (f'{{"image": "{TEXT}", "top_k": 3}}', 422, "send it in the URL, as ?top_k="),
        (f'{{"image": "{TEXT}", "model": "x"}}', 422, "send it in the URL"),
        (f'{{"images": ["{TEXT}", "{TEXT}"]}}', 422, "send several to /v1/classify/batch"),
        ('{"images": []}', 422, "the list is empty"),
        ('{"images": "abcd"}', 400, "must be a list"),
    ],
)  # fmt: skip
def test_json_is_refused_with_what_to_do(
    service: Service, body: str, status: int, words: str
) -> None:
    refused(service, status, words, body, JSON)


def test_a_batch_in_json_names_its_results(service: Service) -> None:
    value = {
        "images": [TEXT, {"b64": TEXT, "filename": "b" * 80}, {"image": TEXT, "key": "k"}, "abc!"]
    }
    status, found, _ = post(service, json.dumps(value), JSON, "/v1/classify/batch")
    assert status == 200
    assert [each["filename"] for each in found["results"]] == ["0", "b" * 80, "k", "3"]
    assert [each.get("predictions") for each in found["results"]][:3] == [predictions(service)] * 3
    assert "'!' at character 3" in found["results"][3]["error"]
    many = json.dumps({"images": ["YQ=="] * 65})
    refused(service, 413, "more than 64 images", many, JSON, "/v1/classify/batch")


def test_an_image_of_the_most_bytes_may_come_as_text(limited: Service) -> None:
    most = encoded("BMP", (1024, 1365))
    assert MOST - 5000 < len(most) < MOST
    expected = predictions(limited, most)
    lines = base64.encodebytes(most).decode()
    forms = (
        (json.dumps({"image": lines}), JSON),
        (form(part(lines.encode(), filename=None)), {"Content-Type": FORM}),
        (urlencode({"image": lines}), {"Content-Type": "application/x-www-form-urlencoded"}),
    )
    for body, headers in forms:
        status, found, _ = post(limited, body, headers)
        assert (status, found.get("predictions")) == (200, expected)
    over = base64.b64encode(bytes(MOST + 1)).decode()
    refused(limited, 413, f"{MOST + 1} bytes; the limit is {MOST}", f'{{"image": "{over}"}}', JSON)
    file = form(part(bytes(MOST + 1)))
    refused(limited, 413, f"more than {MOST} bytes", file, {"Content-Type": FORM})
    refused(limited, 413, "the limit is", f'{{"image": "{over * 2}"}}', JSON)


# Compression


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "identity", "identity, "])
def test_every_body_may_be_compressed(service: Service, coding: str) -> None:
    def packed(body: bytes) -> bytes:
        if "gzip" in coding.lower():
            return gzip.compress(body)
        return zlib.compress(body) if coding == "deflate" else body

    headers = {"Content-Encoding": coding}
    answered(service, packed(IMAGE), headers)
    answered(service, packed(LARGE), headers, LARGE)
    answered(service, packed(form(part())), headers | {"Content-Type": FORM})
    answered(service, packed(json.dumps({"image": TEXT}).encode()), headers | JSON)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_codings_are_415_with_those_that_are_known(service: Service, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    for path in ("/v1/classify", "/v1/classify/batch", "/v2/models/resnet20/infer"):
        status, problem, sent = post(service, IMAGE, headers, path)
        assert (status, sent["accept-encoding"]) == (415, "gzip, deflate")
        assert "gzip or deflate" in problem["error" if path.startswith("/v2") else "detail"]
    for kind in (FORM, "application/json"):
        refused(service, 415, "gzip or deflate", b"x", headers | {"Content-Type": kind})


def test_what_is_compressed_has_the_same_limits(limited: Service) -> None:
    bomb, headers = gzip.compress(bytes(8 * MOST)), {"Content-Encoding": "gzip"}
    for kind in ("image/png", FORM, "application/json"):
        refused(limited, 413, "decompresses to more", bomb, headers | {"Content-Type": kind})
    refused(limited, 400, "not valid gzip", IMAGE, headers)
    refused(limited, 400, "truncated", gzip.compress(IMAGE)[:-9], headers)


# Queries


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/classify?topk=3", "unknown parameter 'topk'; did you mean top_k?"),
        ("POST", "/v1/classify?top-k=3", "did you mean top_k?"),
        ("POST", "/v1/classify?Top_K=3", "did you mean top_k?"),
        ("POST", "/v1/classify?x=3", "unknown parameter 'x'; the parameters are model, top_k"),
        ("POST", "/v1/classify?top_k=1&top_k=2", "the parameter top_k is there twice"),
        ("POST", "/v1/classify?model=a&top_k=1&model=a", "the parameter model is there twice"),
        ("POST", "/v1/classify/batch?topk=3", "did you mean top_k?"),
        ("POST", "/v1/embed?normalise=true", "did you mean normalize?"),
        ("POST", "/v1/embed?format=npy&format=npy", "format is there twice"),
        ("POST", "/v1/explain?class=3", "did you mean class_id?"),
        ("GET", "/v1/models?verbose=1", "unknown parameter 'verbose'; this endpoint takes none"),
        ("HEAD", "/v1/models?verbose=1", ""),
        (
            "GET",
            "/v1/models/resnet20?verbose",
            "unknown parameter 'verbose'; the only one is labels",
        ),
    ],
)
def test_parameters_that_are_unknown_or_there_twice_are_422(
    service: Service, method: str, path: str, words: str
) -> None:
    response = client.request(method, f"{service.url}{path}", content=IMAGE)
    assert response.status_code == 422
    assert words in response.text


@pytest.mark.parametrize("path", ["/", "/docs", "/health/ready", "/metrics", "/v2/models/resnet20"])
def test_pages_and_probes_take_any_query(service: Service, path: str) -> None:
    assert client.get(f"{service.url}{path}?_=1732900000").status_code == 200


def test_known_parameters_of_every_route_are_taken(service: Service) -> None:
    for path in (
        "/v1/classify?model=resnet20&top_k=2",
        "/v1/classify/batch?top_k=2&model=resnet20",
        "/v1/embed?model=resnet20&normalize=true&format=json",
        "/v1/explain?model=resnet20&class_id=2&format=json",
    ):
        response = client.post(f"{service.url}{path}", files={"image": IMAGE})
        assert response.status_code == 200, response.text


# Clients


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bodies") / 'a "quoted" \u7532.png'
    path.write_bytes(IMAGE)
    (path.parent / "plain.png").write_bytes(IMAGE)
    (path.parent / "plain.b64").write_text(TEXT)
    return path


CURL = {
    "bytes": ("--data-binary", "@plain.png"),
    "bytes with a type": ("-H", "Content-Type: image/png", "--data-binary", "@plain.png"),
    "bytes without a type": ("-H", "Content-Type:", "--data-binary", "@plain.png"),
    "chunked": ("-H", "Transfer-Encoding: chunked", "--data-binary", "@plain.png"),
    "a form": ("-F", "image=@plain.png"),
    "a form with a type": ("-F", "file=@plain.png;type=image/png"),
    "a form with a name": ("-F", 'image=@plain.png;filename="a\\"b;c.png"'),
    "a form without a name": ("-F", "image=<plain.png"),
    "a form with base64": ("-F", "image=<plain.b64"),
    "a form encoded": ("-F", "image=@plain.png;encoder=base64"),
    "urlencoded": ("--data-urlencode", "image@plain.b64"),
    "urlencoded bytes": ("--data-urlencode", "image@plain.png"),
    "json": ("--json", json.dumps({"image": TEXT})),
    "json as data": ("-d", json.dumps({"image": TEXT})),
}


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("way", CURL)
def test_curl(service: Service, file: Path, way: str) -> None:
    command = ["curl", "-sS", *CURL[way], f"{service.url}/v1/classify"]
    done = subprocess.run(command, capture_output=True, cwd=file.parent, timeout=60, check=True)
    assert json.loads(done.stdout).get("predictions") == predictions(service), done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_keeps_odd_file_names(service: Service, file: Path) -> None:
    url = f"{service.url}/v1/classify/batch"
    quoted = str(file).replace("\\", "\\\\").replace('"', '\\"')
    command = ["curl", "-sS", "-F", f'x=@"{quoted}"', "-F", "y=@plain.png", url]
    done = subprocess.run(command, capture_output=True, cwd=file.parent, timeout=60, check=True)
    names = [each["filename"] for each in json.loads(done.stdout)["results"]]
    assert [name.replace("%22", '"') for name in names] == [file.name, "plain.png"]


def test_requests(service: Service, file: Path) -> None:
    url = f"{service.url}/v1/classify"
    with file.open("rb") as stream:
        responses = [
            requests.post(url, data=IMAGE, timeout=60),
            requests.post(url, data=iter([IMAGE[:50], IMAGE[50:]]), timeout=60),
            requests.post(url, files={"image": stream}, timeout=60),
            requests.post(url, files={"file": (None, IMAGE)}, timeout=60),
            requests.post(url, files={"file": ("\u7532.png", IMAGE)}, timeout=60),
            requests.post(url, data={"image": TEXT}, timeout=60),
            requests.post(url, json={"image": TEXT}, timeout=60),
        ]
    for response in responses:
        assert response.json().get("predictions") == predictions(service), response.text
    files = [("image", ("\u7532.png", IMAGE)), ("image", ('a"b\\c.png', IMAGE))]
    results = requests.post(f"{url}/batch", files=files, timeout=60).json()["results"]
    # As it was sent: quotes are escaped by the client.
    assert [each["filename"] for each in results] == ["\u7532.png", "a%22b\\c.png"]


def test_httpx(service: Service) -> None:
    url = f"{service.url}/v1/classify"
    ways: tuple[dict[str, Any], ...] = (
        {"content": IMAGE},
        {"files": {"file": IMAGE}},
        {"files": {"file": ("", IMAGE)}},
        {"files": {"file": ("\u7532.png", IMAGE, "image/png")}, "data": {"note": "x"}},
        {"data": {"image": TEXT}},
        {"json": {"image": TEXT}},
    )
    for options in ways:
        response = httpx.post(url, **options, timeout=60)
        assert response.json().get("predictions") == predictions(service), response.text


def test_aiohttp(service: Service, file: Path) -> None:
    async def found() -> list[Any]:
        named = aiohttp.FormData()
        named.add_field("image", IMAGE, filename="\u7532.png", content_type="image/png")
        bare = aiohttp.FormData()
        bare.add_field("image", io.BytesIO(IMAGE))
        quoted = aiohttp.FormData(quote_fields=False)
        quoted.add_field("image", IMAGE, filename='a"b.png')
        url = f"{service.url}/v1/classify"
        answers = []
        async with aiohttp.ClientSession() as session:
            for options in (
                {"data": IMAGE},
                {"data": named},
                {"data": bare},
                {"data": quoted},
                {"data": {"image": TEXT}},
                {"json": {"image": TEXT}},
                {"data": IMAGE, "compress": "deflate"},
            ):
                async with session.post(url, **options) as response:
                    answers.append(await response.json(content_type=None))
            with file.open("rb") as stream:
                async with session.post(url, data={"file": stream}) as response:
                    answers.append(await response.json(content_type=None))
        return answers

    for answer in asyncio.run(found()):
        assert answer.get("predictions") == predictions(service), answer


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_fetch_of_node(service: Service, file: Path) -> None:
    command = ["node", str(PROGRAMS / "send_bodies.mjs"), f"{service.url}/v1/classify", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for index, answer in enumerate(json.loads(done.stdout)):
        assert answer.get("predictions") == predictions(service), (index, answer)
