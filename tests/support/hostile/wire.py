"""Requests as bytes on a connection, right and wrong, with the statuses allowed."""

from __future__ import annotations

from collections.abc import Set

from tests.conftest import encoded

IMAGE = encoded()
BOUNDARY = "gate"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
# What an HTTP server may answer to what is no request. None: no answer, it may wait for the rest.
REFUSED: Set[int | None] = {400, 411, 413, 414, 415, 422, 431, 501, 505}
Case = tuple[bytes, Set[int | None]]


def request(
    target: str | bytes = "/v1/classify",
    *headers: str | bytes,
    method: str = "POST",
    body: bytes = IMAGE,
    kind: str | bytes | None = "image/png",
    length: object = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request that ends its connection; `length` "" leaves the Content-Length away."""
    lines: list[str | bytes] = [b"%b %b %b" % tuple(map(octets, (method, target, version)))]
    lines += ["Host: localhost", "Connection: close", *headers]
    if kind is not None:
        lines.append(b"Content-Type: " + octets(kind))
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return b"\r\n".join(map(octets, lines)) + b"\r\n\r\n" + body


def octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def part(
    data: bytes = IMAGE, name: str = "image", filename: str | bytes | None = "a.png", more: str = ""
) -> bytes:
    given = b"" if filename is None else b'; filename="' + octets(filename) + b'"'
    disposition = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + given
    return f"--{BOUNDARY}\r\n".encode() + disposition + f"\r\n{more}\r\n".encode() + data + b"\r\n"


def form(*parts: bytes, end: bytes = b"--gate--\r\n", kind: str | bytes = FORM) -> bytes:
    return request(kind=kind, body=b"".join(parts) + end)


def asked(query: str | bytes) -> bytes:
    return request(b"/v1/classify?" + octets(query))


def within(milliseconds: str | bytes) -> bytes:
    return request("/v1/classify", b"X-Request-Timeout-Ms: " + octets(milliseconds))


NESTED = b"--in\r\nContent-Disposition: file; filename=a.png\r\n\r\n" + IMAGE + b"\r\n--in--\r\n"
CHUNKED = b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n0\r\n\r\n"

FORMS: dict[str, Case] = {
    "form": (form(part()), {200}),
    "without an end": (form(part(), end=b""), {400}),
    "cut within its image": (form(part()[:-40], end=b""), {400, 422}),
    "cut within a header": (form(b"--gate\r\nContent-Dispo", end=b""), {400, 422}),
    "without a boundary": (form(part(), kind="multipart/form-data"), {400}),
    "with an empty boundary": (form(part(), kind="multipart/form-data; boundary="), {400, 422}),
    "with another boundary": (form(part(), kind="multipart/form-data; boundary=door"), {400, 422}),
    "with a boundary of 10,000 characters": (
        form(part(), kind=f"multipart/form-data; boundary={'b' * 10_000}"),
        {400, 431},
    ),
    "with a boundary of no characters known": (
        form(part(), kind=b"multipart/form-data; boundary=\xff\xfe"),
        {400, 422},
    ),
    "with 1,000 fields": (form(*[part(b"x", f"f{i}", None) for i in range(1000)]), {400}),
    "with 1,000 files": (form(*[part(b"x", f"f{i}") for i in range(1000)]), {422}),
    "with two images": (form(part(), part()), {422}),
    "with another name": (form(part(name="picture")), {200}),
    "with no image": (form(part(b"x", "f", None)), {422}),
    "whose image has no filename": (form(part(filename=None)), {200}),
    "whose image is text": (form(part(b"ship.png", filename=None)), {400, 422}),
    "with a field of 2 MB": (form(part(bytes(2**21), "f", None), part()), {400}),
    "in a form": (form(part(NESTED, more="Content-Type: multipart/mixed; boundary=in\r\n")), {400}),
    "in base64": (form(part(b"aGVsbG8=", more="Content-Transfer-Encoding: base64\r\n")), {400}),
    "of nothing": (form(end=b""), {400, 422}),
    "of an end": (form(), {400, 422}),
    "with text before and behind": (form(b"hello\r\n", part(), end=b"--gate--\r\nbye"), {200, 400}),
    "whose part has no name": (
        form(b"--gate\r\nContent-Disposition: form-data\r\n\r\nx\r\n"),
        {400},
    ),
    "whose part has no headers": (form(b"--gate\r\n\r\nx\r\n"), {400}),
    "whose part has 1,000 headers": (form(part(more="X: y\r\n" * 1000)), {400}),
    "whose name breaks the line": (form(part(name="a\r\nb")), {400, 422}),
    "whose name has controls": (form(part(name="\x1b[2J\x85\u2028")), {200}),
    "with a path as filename": (form(part(filename="../../etc/passwd")), {200}),
    "with a null in its filename": (form(part(filename=b"a\0b.png")), {200, 400}),
    "with a filename of other scripts": (form(part(filename="\u7532\U0001f600\u202e.png")), {200}),
    "with a filename that is no text": (form(part(filename=b"\xff\xfe\xed\xa0\x80")), {200}),
    "with a filename of 100,000 characters": (form(part(filename="f" * 100_000)), {400}),
    "with a charset that is none": (form(part(), kind=FORM + "; charset=undefined"), {415}),
    "with a charset that gives surrogates": (
        form(part(filename=b"\\ud800"), kind=FORM + "; charset=unicode_escape"),
        {415},
    ),
    "with a charset of domains": (form(part(), kind=FORM + '; charset="idna"'), {415}),
}
TYPES: dict[str, Case] = {
    "no type": (request(kind=None), {200}),
    "an empty type": (request(kind=""), {200}),
    "another image's type": (request(kind="image/jpeg"), {200}),
    "an unknown image type": (request(kind="image/x-none"), {200}),
    "a type of text": (request(kind="text/html"), {200}),
    "a type of text, and text": (request(kind="text/html", body=b"<html>"), {415}),
    "a type with controls": (request(kind=b"\xff\x85\x1b;;;=,"), {400}),
    "a type of nonsense": (request(kind=b"\xff\x85;;;=,"), {200}),
    "a type of nonsense, and nonsense": (request(kind=b"\xff;;;=,", body=b"\xff;;;=,"), {415}),
    "a type of 4,000 characters": (request(kind="a" * 4000), {200}),
    "a type of 4,000 characters, and text": (request(kind="a" * 4000, body=b"a" * 99), {415}),
    "a type of forms in their other way": (
        request(kind="application/x-www-form-urlencoded", body=b"image=x"),
        {400, 422},
    ),
    "a form's type and an image": (request(kind=FORM), {200}),
    "an image's type and a form": (request(body=part()), {400}),
}
LENGTHS: dict[str, Case] = {
    "too short a length": (request(length=10), {200, 400}),
    "too long a length": (request(length=len(IMAGE) + 1), {None, 400, 408}),
    "no length": (request(length=""), {400, 411}),
    "no length, chunked": (
        request("/v1/classify", "Transfer-Encoding: chunked", length="", body=CHUNKED),
        {200},
    ),
    "a length below zero": (request(length=-1), REFUSED),
    "a length in hexadecimal": (request(length="0x10"), REFUSED),
    "a length of another script": (request(length="\u0663"), REFUSED),
    "a length with a sign": (request(length="+5"), REFUSED),
    "a length of 10**30": (request(length=10**30), REFUSED),
    "a length of 2**62": (request(length=2**62), {413}),
    "a length of 1 GB": (request(length=2**30), {413}),
    "two lengths": (request("/v1/classify", "Content-Length: 3"), REFUSED),
    "a list of lengths": (request(length="5, 5"), REFUSED),
    "both lengths": (
        request("/v1/classify", "Transfer-Encoding: chunked", body=CHUNKED, length=3),
        REFUSED,
    ),
    "an unknown coding": (request("/v1/classify", "Transfer-Encoding: none", length=""), REFUSED),
    "chunked not last": (
        request("/v1/classify", "Transfer-Encoding: chunked, gzip", length="", body=CHUNKED),
        REFUSED,
    ),
    "a chunk of nonsense": (
        request("/v1/classify", "Transfer-Encoding: chunked", length="", body=b"zz\r\nx\r\n"),
        REFUSED,
    ),
    "a chunk of 2**70": (
        request(
            "/v1/classify", "Transfer-Encoding: chunked", length="", body=b"fffffffffffffffff\r\nx"
        ),
        REFUSED,
    ),
    "a chunk without an end": (
        request("/v1/classify", "Transfer-Encoding: chunked", length="", body=CHUNKED[:-5]),
        {None, 400, 408},
    ),
    "expecting to go on": (request("/v1/classify", "Expect: 100-continue"), {100, 200}),
    "expecting something else": (request("/v1/classify", "Expect: gold"), {200, 417}),
}
URLENCODED = "application/x-www-form-urlencoded"
TEXTS: dict[str, Case] = {
    f"{kind[-16:]} {body[:24]!r}": (request(kind=kind, body=body), statuses)
    for kind, body, statuses in (
        ("application/json", b"", {400}),
        ("application/json", b"{", {400}),
        ("application/json", b"[" * 100_000, {413}),
        ("application/json", b'{"image":' + b"[" * 60, {400}),
        ("application/json", b'"' * 100_000, {413}),
        ("application/json", b'{"image": "' + b"\\" * 200_000 + b'"}', {400}),
        ("application/json", b'{"image": "' + b'\\"' * 50_000 + b'"}', {413}),
        ("application/json", b'{"image": ' + b"1" * 100_000 + b"}", {413}),
        ("application/json", b'{"image": ' + b"1" * 5000 + b"}", {400}),
        ("application/json", b'{"image": NaN}', {400}),
        ("application/json", b'{"image": "\\u00000"}', {400}),
        ("application/json", b'{"image": "\\ud800"}', {400}),
        ("application/json", b'{"image": "\xff\xfe"}', {400}),
        ("application/json", '{"image": "x"}'.encode("utf-16"), {400}),
        ("application/json", b" " * 200_000, {413}),
        ("application/json", b'{"image": "' + b"=" * 200_000 + b'"}', {400}),
        ("application/json", b'{"images": [' + b"0," * 500 + b"0]}", {422}),
        ("application/json", b'{"image": "' + b"A" * 200_000, {400}),
        ("", b"{" * 100_000, {413}),
        (URLENCODED, b"{}", {400}),
        (URLENCODED, b"a=" + b"%" * 100_000, {400}),
        (URLENCODED, b"image=" + b"%" * 100_000, {400}),
        (URLENCODED, b"image=" + b"%41" * 100_000, {400}),
        (URLENCODED, b"a=1" + b"&a=1" * 50_000, {400}),
        (URLENCODED, b"=" * 100_000, {400}),
    )
}
QUERIES: dict[str, Case] = {
    f"?{query[:40]!r}": (asked(query), statuses)
    for query, statuses in (
        ("model=%00", {404}),
        ("model=%ff%fe", {404}),
        (b"model=\xff", {400, 404}),
        ("model=%ed%a0%80", {404}),
        ("model=..%2f..%2fetc%2fpasswd", {404}),
        ("model=" + "m" * 5000, {404, 414, 431}),
        ("model=%0d%0aX:y", {404}),
        ("model=", {404}),
        ("top_k=0", {422}),
        ("top_k=-1", {422}),
        ("top_k=%D9%A3", {200, 422}),
        ("top_k=%EF%BC%93", {200, 422}),
        ("top_k=1e3", {422}),
        ("top_k=nan", {422}),
        ("top_k=3%00", {422}),
        ("top_k=" + "9" * 4000, {422, 414, 431}),
        ("top_k=9223372036854775808", {422}),
        ("top_k=1&top_k=2", {422}),
        ("top_k", {422, 200}),
        ("&&&&==%%%", {422}),
        ("&".join(f"a{i}=1" for i in range(500)), {422, 414, 431}),
        ("topk=3", {422}),
        ("a" * 8000 + "=1", {422, 414, 431}),
    )
}  # fmt: skip
TIMEOUTS: dict[str, Case] = {
    f"within {text!r} ms": (within(text), statuses)
    for text, statuses in (
        ("nan", {422}),
        ("inf", {422}),
        ("-inf", {422}),
        ("1e999", {422}),
        ("-0", {422}),
        ("-1", {422}),
        ("0", {422}),
        ("", {422}),
        ("9" * 400, {422}),
        ("0x10", {422}),
        ("\u0663", {422}),
        ("1e-300", {422, 429, 504}),
        ("1e4", {200}),
        ("soon", {422}),
    )
}
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")
REQUESTS: dict[str, Case] = {
    "no version": (b"GET /health/live\r\n\r\n", {None, 400, 200, 505}),
    "version 1.0": (request(version="HTTP/1.0"), {200}),
    "version 2.0": (request(version="HTTP/2.0"), REFUSED | {200}),
    "version 9.9": (request(version="HTTP/9.9"), REFUSED),
    "no version at all": (request(version="HTP"), REFUSED),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "the options of RTSP": (b"OPTIONS / RTSP/1.0\r\nCSeq: 1\r\n\r\n", {400}),
    "a GET of RTSP": (b"GET / RTSP/1.0\r\nCSeq: 1\r\n\r\n", {400}),
    "a method of RTSP": (b"DESCRIBE * RTSP/1.0\r\n\r\n", {400}),
    "lower-case method": (request(method="post"), REFUSED | {405}),
    "unknown method": (request(method="BREW"), REFUSED | {405}),
    "GET": (request(method="GET", body=b""), {405}),
    "HEAD": (request(method="HEAD", body=b""), {405}),
    "OPTIONS": (request(method="OPTIONS", body=b""), {405}),
    "TRACE": (request(method="TRACE", body=b""), {405}),
    "PUT": (request(method="PUT"), {200}),
    "PATCH": (request(method="PATCH"), {405}),
    "CONNECT": (request("localhost:80", method="CONNECT", body=b""), {400}),
    "OPTIONS *": (request("*", method="OPTIONS", body=b""), {400, 404, 405}),
    "absolute form": (request("http://localhost/v1/classify"), {200}),
    "absolute form of elsewhere": (request("http://example.org:99/v1/classify"), {200}),
    "a target without a slash": (request("v1/classify"), REFUSED | {404}),
    "an empty target": (request(""), REFUSED | {404}),
    "two slashes": (request("//v1//classify"), {404}),
    "a way up": (request("/v1/../../etc/passwd"), {404}),
    "a way up in the pages": (request("/web/..%2f..%2fsettings.py", method="GET", body=b""), {404}),
    "a null in the path": (request("/v1/classify%00"), {404}),
    "a line break in the path": (request("/v1/%0d%0aINFO forged"), {400, 404}),
    "a forged line": (request("/v1/%0aINFO%20forged%1b%5b2J%c2%85"), {404}),
    "a path that is no text": (request(b"/v1/\xff\xfe"), {400, 404}),
    "a model's path that is no text": (request("/v1/models/%ff%00", method="GET", body=b""), {404}),
    "no host": (b"GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n", {200, 400}),
    "a host that is none": (
        b"GET /nowhere HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        {400, 404},
    ),
    "two hosts": (request("/v1/classify", "Host: other"), {200, 400}),
    "a header of 60,000 characters": (request("/v1/classify", "X: " + "y" * 60_000), {200, 431}),
    "1,000 headers": (request("/v1/classify", *["X: y"] * 1000), {200, 431}),
    "a header without a name": (request("/v1/classify", ": x"), REFUSED),
    "a header without a colon": (request("/v1/classify", "nonsense"), REFUSED),
    "a space before the colon": (request("/v1/classify", "X : y"), REFUSED | {200}),
    "a null in a header": (request("/v1/classify", b"X: a\0b"), REFUSED),
    "a folded header": (request("/v1/classify", "X: a\r\n b"), REFUSED | {200}),
    "a header that is no text": (request("/v1/classify", b"X-Request-ID: \xff\x85"), {200}),
    "a request's id of 10,000 characters": (
        request("/v1/classify", "X-Request-ID: " + "i" * 10_000),
        {200, 431},
    ),
    "line ends of another kind": (request().replace(b"\r\n", b"\n", 6), REFUSED | {200}),
    "a wish for a web socket": (
        request("/v1/classify", "Upgrade: websocket", "Connection: upgrade"),
        {200},
    ),
    "a wish for HTTP/2": (request("/v1/classify", *H2C), {200}),
    "the begin of TLS": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500), REFUSED),
    "noise": (bytes(range(256)) * 8, REFUSED),
    "several at once": (request().replace(b"Connection: close\r\n", b"") * 2 + request(), {200}),
}
CASES: dict[str, Case] = {
    f"{kind}: {name}": case
    for kind, table in (
        ("form", FORMS),
        ("type", TYPES),
        ("text", TEXTS),
        ("length", LENGTHS),
        ("query", QUERIES),
        ("timeout", TIMEOUTS),
        ("request", REQUESTS),
    )
    for name, case in table.items()
}


def wishing(data: bytes) -> bytes:
    """A request with a wish for HTTP/2, which is to be ignored."""
    start, end, rest = data.partition(b"\r\n")
    return start + end + "".join(f"{line}\r\n" for line in H2C).encode() + rest
