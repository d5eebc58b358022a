"""Imports point one way, and each library is known only where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])

# A module may import those of its own row and of any row below it.
SERVICE = [
    {"cli"},
    {"commands"},
    {"trial"},
    {"supervisor", "front_end", "ray"},
    {"server", "load", "acceptor"},
    {"app"},
    {"v2", "tracing"},
    {"express", "admin", "embed", "explain"},
    {"routes", "middleware", "access", "protocol"},
    {"problems", "uploads"},
    {"body"},
    {"schemas"},
    {"engine_process"},
    {"fleet", "remote_fleet"},
    {"remote"},
    {"pipeline", "offline", "bulk"},
    {"worker"},
    {
        "decode",
        "batcher",
        "engines",
        "turns",
        "watchdog",
        "postprocess",
        "shared_metrics",
        "catalog",
    },
    {"directory", "plan"},
    {"metrics", "exchange", "ledger", "child", "roster", "reload", "listener", "tls"},
    {"ranking", "control", "task", "waiting"},
    {"settings", "headers", "rows"},
    {"keys", "sources", "specs"},
    {
        "errors",
        "interpreter",
        "logs",
        "lease",
        "daemon",
        "client",
        "choices",
        "capacity",
        "runtime",
    },
]
MODELS = [
    {"training", "interchange"},
    {"bundle"},
    {"classifier", "variants", "summary"},
    {
        "resnet",
        "named",
        "published",
        "recorder",
        "preprocess",
        "labels",
        "naming",
        "builtin",
        "digest",
        "hardware",
        "style",
    },
    {"formats", "nearest", "processor"},
]
# Libraries that only some modules of `service` may import.
ONLY = {
    "torch": {"engines"},
    "openvino": {"engines"},
    "fastapi": {
        "admin",
        "embed",
        "explain",
        "routes",
        "problems",
        "uploads",
        "body",
        "app",
        "ray",
        "server",
    },
    "starlette": {
        "admin",
        "express",
        "middleware",
        "tracing",
        "access",
        "problems",
        "routes",
        "ray",
        "uploads",
        "body",
        "v2",
    },
    "ray": {"bulk", "ray"},
    "uvicorn": {"server", "protocol"},
    "opentelemetry": {"tracing"},
    "prometheus_client": {"metrics", "ray", "shared_metrics"},
    "PIL": {"decode", "explain", "headers", "engines", "client"},
    "httpx": {"client"},
    "click": {"cli", "commands"},
    "yaml": {"sources"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> tuple[str, str]:
    """The package and the name of its direct child that a file belongs to."""
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    return package, rest[0]


def row_of(rows: list[set[str]], name: str) -> int:
    return next(i for i, row in enumerate(rows) if name in row)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package, name = module_of(path)
    if name == "__init__":
        return
    rows = SERVICE if package == "service" else MODELS
    for imported in imports(path):
        head, _, rest = imported.partition(".")
        target = rest.partition(".")[0]
        assert not (package == "models" and head == "service"), "models never import service"
        if head == package and any(target in row for row in rows):
            assert row_of(rows, name) <= row_of(rows, target), f"{name} imports {target} above it"
        if package == "service" and head in ONLY:
            assert name in ONLY[head], f"{name} must not know {head}"


def test_every_module_has_its_row() -> None:
    for path in FILES:
        package, name = module_of(path)
        if name not in ("__init__", "web"):
            row_of(SERVICE if package == "service" else MODELS, name)


# Settings, and what stands in for the processor.
READ_THE_ENVIRONMENT = {ROOT / "service" / "settings.py", ROOT / "models" / "processor.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_settings_reads_the_environment(path: Path) -> None:
    text = path.read_text()
    reads = "os.environ" in text or "getenv" in text
    assert not reads or path in READ_THE_ENVIRONMENT


# Those that are set while the service runs, and may jump; logging has its own.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}


SERVING = [path for path in FILES if module_of(path)[0] == "service"]


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_timed_by_a_clock_that_may_jump(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert ".".join(ast.unparse(node).split(".")[-2:]) not in WALL_CLOCKS
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not {"time", "time_ns"} & {alias.name for alias in node.names}
