"""Writes docs/troubleshooting.md: the texts of the code, each with what to do.

`python -m tests.support.troubleshooting --write`. What stops a start is every text of `START` that
says what to do behind a semicolon; refusals are those of `service.errors`; `OTHERS` are texts of
the code and what people see without one.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from textwrap import fill

from models.builtin import DEFAULT_SPEC
from service.errors import REFUSALS, ServiceError
from service.http.listener import REMEDIES
from service.http.problems import CLIENT_CLOSED_REQUEST, STATUSES
from tests.support.rooms import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# What raises the errors of a start, in its order.
START = (
    "service/config/sources.py",
    "service/config/setting_types.py",
    "service/config/settings.py",
    "service/config/keys.py",
    "service/http/tls.py",
    "service/http/listener.py",
    "service/http/reserved_port.py",
    "service/http/unix_socket.py",
    "service/http/service_manager.py",
    "models/bundle_header.py",
    "models/interchange/specs.py",
    "service/config/specs.py",
    "service/cli/preflight.py",
    "service/repository/loader.py",
    "service/engines/devices.py",
    "service/engines/cards.py",
    "service/grpc/attached.py",
)
RAISED = ("ConfigError", "ValueError", "PydanticCustomError", "_refusal")
# In these modules, texts that are returned or named are errors too.
RETURNED = ("tls.py", "cards.py", "bundle_header.py", "specs.py", "preflight.py")
# What follows a semicolon and is nothing to do, or is known only when the error occurs.
NO_REMEDY = ("it has", "NAME", "did you mean")
NAMES = {"cuda": "VERSION"}
# What pydantic fills into a text, where it is no value of the user's.
FILLED_IN = {"spec": DEFAULT_SPEC}
Row = tuple[str, str]
# By heading: a text that the code has, or in italics what people see, and what to do.
NOT_READY = (
    (
        "the engine is warming up: ",
        "wait: the first start on a machine measures and compiles, later "
        "ones read `cache_dir`; keep that folder",
    ),
    (
        "the service is shutting down",
        "send requests to another instance; it has got a signal to stop",
    ),
    (
        "the engine hangs: ",
        "the process must be replaced; run it under a supervisor, such as "
        "[systemd or Kubernetes](guides/systemd.md); `/health/live` is its check",
    ),
    (
        "a bug ended the engine's thread: ",
        "restart the service, and report the traceback in its log",
    ),
    (
        "ended; another is starting",
        "wait; if it happens again and again, the log has why the "
        "engine's process ends, most often for want of memory",
    ),
)
WRONG = (
    (
        "*other classes than in the notebook*",
        "compare the preprocessing: `resnet-serve models FILE` "
        "prints it, `resnet-serve check FILE PAIR` names what fits: "
        "[your weights](guides/own-weights.md#compare-it-with-the-library-it-came-from)",
    ),
    (
        "*`class 0` instead of a name*",
        "the bundle has no labels: `resnet-serve convert --labels FILE`",
    ),
    (
        "*probabilities differ in the third digit*",
        "large JPEGs are decoded at a part of their size, "
        "and bf16 rounds: set `exact_decode: true` and `precision: fp32`",
    ),
    ("*too sure of wrong classes*", "fit a temperature: `resnet-serve evaluate --fit-temperature`"),
    (
        "did not start, using eager: ",
        "the faster engine differed from fp32 or failed, and plain "
        "PyTorch answers; the line says why",
    ),
)
SLOW = (
    (
        "*every answer takes long*",
        "read the header `Server-Timing`: `decode` is the image, `queue` "
        "the load, `inference` the network; [tuning](guides/tuning.md)",
    ),
    (
        "*slow on a CPU*",
        "`GET /v1/models` must say `openvino` as engine; if not, install the extra "
        "`cpu`; `precision: int8` is faster on CPUs without bf16",
    ),
    ("*slow after each start*", "`cache_dir` is not kept: give the container a volume"),
    ("*slow uploads*", "resize images before sending: the network sees few pixels of a photo"),
)
GPU = (
    (
        "*`GET /v1/models` says `cpu`*",
        "torch sees no GPU: `nvidia-smi` and "
        "`python -c 'import torch; print(torch.cuda.is_available())'` say why; "
        "[a GPU host](guides/gpu-host.md)",
    ),
    (
        "*in a container*",
        "start it with `--gpus all` or Compose's reservation, and use the image for CUDA",
    ),
    (
        "out of memory for batches of ",
        "smaller batches serve; free memory on the GPU, or set `max_batch`",
    ),
    (
        "*the GPU is idle under load*",
        "decoding on the CPU is the limit: `decode: device`, more "
        "`workers` or `decode_threads`; [tuning](guides/tuning.md)",
    ),
)
OTHERS = {"NOT_READY": NOT_READY, "WRONG": WRONG, "SLOW": SLOW, "GPU": GPU}
STATUS_4XX, STATUS_BUSY = range(400, 499), (429, 503, 504)


def page() -> str:
    refused = [row for kind in REFUSALS for row in _refusal(kind)]
    return "\n".join(
        [
            "# Troubleshooting",
            "",
            *_text(
                "What you see, and what to do, in the order of a first day. Words in capitals "
                "stand for your values. `resnet-serve config check` finds all that stops a start "
                "at once, and needs no restart. A text that is not in this list says itself what "
                "to do."
            ),
            *_section("It does not start", "the service says", _start()),
            *_section("It is not ready", "`GET /health/ready` or the log says", NOT_READY),
            *_section(
                "It refuses (400 to 499)",
                "status, `type` of the answer",
                [(what, remedy) for status, what, remedy in refused if status in CLIENTS_FAULT],
            ),
            *_section(
                "It is busy (429, 503, 504) or fails (500)",
                "status, `type` of the answer",
                [
                    *((what, remedy) for status, what, remedy in refused if status in STATUS_BUSY),
                    ("500 `internal_error`", ServiceError.remedy),
                ],
            ),
            *_section("It answers wrongly", "you see", WRONG),
            *_section("It is slow", "you see", SLOW),
            *_section("The GPU is not used", "you see", GPU),
            "",
        ]
    )


CLIENTS_FAULT = set(STATUS_4XX) - set(STATUS_BUSY)


def _refusal(kind: type[ServiceError]) -> Iterator[tuple[int, str, str]]:
    status = STATUSES[kind]
    if status != CLIENT_CLOSED_REQUEST:
        yield status, f"{HTTPStatus(status).value} `{kind.reason}`", kind.remedy


def _section(title: str, seen: str, rows: list[Row] | tuple[Row, ...]) -> list[str]:
    lines = [f"| {_cell(text)} | {remedy} |" for text, remedy in rows]
    return ["", f"## {title}", "", f"| {seen} | what to do |", "|---|---|", *lines]


def _cell(text: str) -> str:
    """A text of the code in code's type; what people see as it is."""
    return text if text[0] in "*45" else f"`{text.strip(' :;')}`".replace("|", "\\|")


def _text(text: str) -> list[str]:
    return fill(text, 112, break_on_hyphens=False).splitlines()


def _start() -> list[Row]:
    rows: dict[str, str] = {
        f"cannot listen on ADDRESS: {os.strerror(number)}": remedy
        for number, remedy in REMEDIES.items()
    }
    for name in START:
        for text in texts(ROOT / name):
            what, semicolon, remedy = text.partition("; ")
            if semicolon and not what.isupper() and not remedy.startswith(NO_REMEDY):
                rows.setdefault(what.replace("`", "'"), _linked(remedy))
    return list(rows.items())


def _linked(remedy: str) -> str:
    remedy = re.sub(r"docs/(guides/[\w-]+\.md)", r"[the guide](\1)", remedy)
    remedy = re.sub(r"pip install '[^']+'", r"`\g<0>`", remedy)
    return remedy.replace("|", "\\|")


def texts(path: Path) -> Iterator[str]:
    """The texts of a module's errors, with names in capitals for what they are filled with."""
    tree = ast.parse(path.read_text("utf-8"))
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        for each in _errors(node, path.name):
            if text := " ".join(_template(each, constants).split()):
                yield re.sub(r"\{(\w+)\}", _filled_in, text)


def _errors(node: ast.AST, module: str) -> list[ast.expr]:
    """The expressions of a node that may be texts of errors."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in RAISED:
        return node.args
    if module not in RETURNED:
        return []
    if isinstance(node, ast.Assign):
        return [node.value]
    return [node.value] if isinstance(node, ast.Return | ast.Yield) and node.value else []


def _template(node: ast.expr, constants: Mapping[str, object]) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        call = node.value
        if isinstance(call, ast.Call) and _name(call.func) == "install":
            extra = ast.unparse(call.args[0])[1:-1]
            return f"[install the extra](guides/install.md#extras) {extra}"
        name = _name(node.value)
        return str(constants.get(name) or NAMES.get(name, name.upper()))
    return ""


def _filled_in(match: re.Match[str]) -> str:
    return FILLED_IN.get(match[1], match[1].upper())


def _name(node: ast.expr) -> str:
    """The last name in an expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Call):
        return _name(node.args[0]) if node.args else _name(node.func)
    return "..."


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), "utf-8")
    else:
        print(page())
