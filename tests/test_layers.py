"""The rooms of the house, and what holds in them: CONTRIBUTING.md has the picture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import rooms
from tests.support.rooms import GROUND, NAMES, ROOT, module_of, package_of, room_of, runtime_imports

SERVICE = [path for path in rooms.FILES if path.is_relative_to(ROOT / "service")]
FILES = [path for path in rooms.FILES if not path.is_relative_to(ROOT / "benchmarks")]
BENCHMARKS = [path for path in rooms.FILES if path.is_relative_to(ROOT / "benchmarks")]
# What a room may import, beside itself and the ground files. `models` never imports `service`.
ROOMS = {
    "cli": {
        "ray",
        "workers",
        "grpc",
        "http",
        "repository",
        "engines",
        "inference",
        "config",
        "client",
    },
    "ray": {"http", "repository", "inference", "config"},
    "workers": {"grpc", "http", "repository", "inference", "config"},
    "grpc": {"http", "oip", "inference", "config"},
    "http": {"oip", "inference", "config"},
    "oip": {"inference", "config"},
    "repository": {"engines", "inference", "config"},
    "engines": {"inference", "config"},
    "inference": {"config"},
    "config": set(),
    "client": set(),
}
# Files that may import one room more than theirs.
EXCEPTIONS = {("service.http.app", "repository")}
# The same for `models`, whose files at the root are below all of them.
MODEL_ROOMS = {
    "interchange": {"labels", "builtin"},
    "training": {"data", "evaluation"},
    "data": {"labels"},
    "evaluation": {"data"},
    "reports": {"training", "labels"},
    "labels": set(),
    "builtin": set(),
}
# Which rooms may import a library.
LIBRARIES = {
    "torch": {"engines"},
    "torchvision": {"engines"},
    "openvino": {"engines"},
    "pynvml": {"engines"},
    "fastapi": {"http"},
    "starlette": {"http", "ray"},
    "uvicorn": {"http"},
    "opentelemetry": {"http"},
    "PIL": {"inference", "http", "client", "engines"},  # engines are timed with real files
    "prometheus_client": {"metrics", "metric_families", "workers", "ray"},
    "ray": {"ray", "cli"},
    "grpc": {"grpc"},
    "grpc_reflection": {"grpc"},
    "google": {"grpc"},
    "httpx": {"client"},
    "click": {"cli"},
    "yaml": {"config"},
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Modules, and what each imports."""
    return ((module_of(path), target) for path in paths for target in runtime_imports(path))


# A rule is one test for all files: hundreds of tests take longer than what they look at.
def test_a_room_imports_only_rooms_below_it() -> None:
    for module, target in imports(FILES):
        package, room = package_of(module), room_of(module)
        below = ROOMS if package == "service" else MODEL_ROOMS
        said = f"{module} imports {target}"
        if package_of(target) != package:
            assert not (package == "models" and target.startswith("service")), said
            assert not (room == "client" and target.startswith("models")), said
            continue
        other = room_of(target)
        if room in below and other in below and other != room:
            allowed = other in below[room] or (module, other) in EXCEPTIONS
            assert allowed, f"{said}: {room} may not know {other}"
        if room not in below and room and package == "service":
            assert other in GROUND, f"{said}, and is below all rooms"
        if room == "client":
            assert other == "client", f"{said}: the client imports nothing of the service"


def test_a_room_of_benchmarks_imports_no_other_but_common() -> None:
    for module, target in imports(BENCHMARKS):
        if package_of(target) == "benchmarks":
            assert room_of(target) in {room_of(module), "common"}, f"{module} imports {target}"
        assert package_of(target) != "tests", f"{module} imports {target}"


def test_only_rooms_are_in_benchmarks() -> None:
    assert {path.name for path in ROOT.glob("benchmarks/*.py")} == {"__init__.py"}


def test_the_picture_of_the_rooms_is_true() -> None:
    (shown,) = rooms.PICTURE.findall(rooms.CONTRIBUTING.read_text("utf-8"))
    assert shown == rooms.picture(rooms.boxes()), "python -m tests.support.rooms --write"


def test_what_contributing_names_is_there() -> None:
    text = rooms.CONTRIBUTING.read_text("utf-8")
    paths = re.findall(r"`((?:service|models|tests|benchmarks|docs|deploy)/[\w./-]+)`", text)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {
        module_of(path): {
            target for target in runtime_imports(path, at_start=True) if target in NAMES
        }
        - {module_of(path)}
        for path in rooms.FILES
    }
    TopologicalSorter(graph).prepare()


def test_each_library_is_known_only_where_it_belongs() -> None:
    for module, target in imports(SERVICE):
        room, library = room_of(module), package_of(target)
        assert room in LIBRARIES.get(library, {room}), f"{module} must not know {library}"


@pytest.mark.parametrize(
    "module",
    [
        "service.workers.supervisor",
        "service.workers.front_end",
        "service.inference.pipeline",
        "service.cli.main",
        "service.client",
        "models.interchange.fetching",
    ],
)
def test_what_does_not_compute_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packages_have_empty_init_files() -> None:
    """But those whose names users import, and data that is found by its package."""
    spoken = {"models", "models.builtin", "models.labels", "service.client"}
    full = {
        module_of(path)
        for path in FILES
        if path.name == "__init__.py" and path.read_text("utf-8").strip()
    }
    assert full == spoken


# Names that the client, whose names are its users', shares with the service's JSON and refusals.
SPOKEN = {
    "Busy", "Classification", "Embedding", "Explanation", "Health", "Input", "ModelInfo", "Models",
    "Parity", "Prediction", "Region", "Timing", "UnknownModel", "Weights",
}  # fmt: skip
# Each is called so by whoever runs or imports it.
SAME_STEMS = {
    "__init__", "__main__",
    "app",  # `service.ray.app:app`, and http's
    "routes",
    "metrics",  # Ray's
    "models", "classify", "health",  # a command, and the endpoints
    "config", "convert", "train", "evaluate", "results",
}  # fmt: skip


def test_no_file_and_no_public_class_has_the_name_of_another() -> None:
    stems = Counter(path.stem for path in SERVICE)
    assert {stem for stem, count in stems.items() if count > 1} <= SAME_STEMS
    classes = Counter(
        node.name
        for path in SERVICE
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in classes.items() if count > 1} <= SPOKEN


def test_only_the_ground_is_outside_the_rooms() -> None:
    files = {path.stem for path in ROOT.glob("service/*.py")}
    assert files == {*GROUND, "__init__"}
    folders = {path.parent.name for path in ROOT.glob("service/*/__init__.py")}
    assert folders == set(ROOMS)


# Tests that are apart from those of their module, and what of it they test.
APART = {
    "tests/service/config/test_bad_values.py": "service.config.settings: every one, in our words",
    "tests/models/test_bundle_refusals.py": "models.bundle: what it refuses, to the word",
    "tests/models/test_tracing.py": "models.resnet: what other tools make of its networks",
    "tests/models/test_library.py": "the tasks of a researcher, with all of the package",
    "tests/service/engines/test_fake_cuda.py": "the devices that play CUDA for the others",
    "tests/service/http/test_upgrade.py": "connection: requests that ask for another protocol",
    "tests/service/inference/test_decoding_fuzz.py": "decoding: thousands of mutated files",
}


def test_tests_mirror_modules() -> None:
    """`tests/ROOM/test_x.py` tests `ROOM/x.py`, or the package `ROOM/x`, or as `ROOM/test_ROOM.py`
    the whole room."""
    for package in ("service", "models"):
        for path in ROOT.glob(f"tests/{package}/**/test_*.py"):
            room = ROOT / path.parent.relative_to(ROOT / "tests")
            tested = path.stem.removeprefix("test_")
            mirrors = (room / f"{tested}.py").is_file() or (room / tested).is_dir()
            assert mirrors or tested == room.name or name(path) in APART, f"{name(path)}: of what?"


# The service's variables, those that describe the processor, and those of downloads.
READ_THE_ENVIRONMENT = {
    ROOT / "service" / "config" / "variables.py",
    ROOT / "models" / "processor.py",
    ROOT / "models" / "interchange" / "variables.py",
}


def test_only_one_module_reads_the_environment() -> None:
    reading = {path for path in FILES if re.search(r"os\.environ|getenv", path.read_text("utf-8"))}
    assert reading <= READ_THE_ENVIRONMENT


def nodes(paths: list[Path], *words: str) -> Iterator[tuple[Path, ast.AST]]:
    """The syntax of the files that have one of the `words`; to parse a file takes its time."""
    for path in paths:
        text = path.read_text("utf-8")
        if any(word in text for word in words):
            yield from ((path, node) for node in ast.walk(ast.parse(text)))


# Those that are set while the service runs, and may jump; logging has its own.
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
# A span begins at a time of day; it ends by the clock that does not jump.
STAMPS = {
    (ROOT / "service/http/tracing.py", "time.time_ns"),
    (ROOT / "service/http/tls.py", "datetime.now"),  # of certificates
}


def test_nothing_is_timed_by_a_clock_that_may_jump() -> None:
    ends = {clock.partition(".")[2] for clock in WALL_CLOCKS}
    for path, node in nodes(SERVICE, *ends):
        if isinstance(node, ast.Attribute) and node.attr in ends:
            clock = ".".join(ast.unparse(node).split(".")[-2:])
            assert clock not in WALL_CLOCKS or (path, clock) in STAMPS, f"{name(path)}: {clock}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not {"time", "time_ns"} & {alias.name for alias in node.names}, name(path)


def moves_or_synchronises(node: ast.AST) -> bool:
    """`os.replace`, `os.fsync` and their kin, `path.replace(target)` and `path.rename(target)`.

    Those of texts and dates take two arguments, or keywords.
    """
    if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        return node.module in ("os", "shutil") and bool(names & {"move", *MOVES, *SYNCHRONISES})
    if isinstance(node, ast.Attribute):
        moves = node.attr in {"move", *MOVES} and ast.unparse(node) in FULL_MOVES
        return moves or node.attr in SYNCHRONISES
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in MOVES and len(node.args) == 1 and not node.keywords
    return False


SYNCHRONISES = {"fsync", "fdatasync"}
MOVES = {"replace", "rename", "renames"}
FULL_MOVES = {"os.replace", "os.rename", "os.renames", "shutil.move"}


def test_files_are_replaced_and_synchronised_in_one_place() -> None:
    found: dict[str, list[str]] = {}
    for path, node in nodes(rooms.FILES, "move", *MOVES, *SYNCHRONISES):
        if moves_or_synchronises(node):
            found.setdefault(name(path), []).append(ast.unparse(node))
    assert found.keys() == {"models/files.py"}, found


def name_of_call(node: ast.AST) -> str:
    """The last part of what is called; empty if it is no call."""
    called = node.func if isinstance(node, ast.Call) else None
    return str(getattr(called, "attr", getattr(called, "id", "")))


BEGINS = ("capture_begin", "make_graphed_callables")


def captures(node: ast.AST) -> bool:
    """Whether it begins to capture a CUDA graph."""
    called = name_of_call(node)
    return called in BEGINS or (
        called == "graph"
        and isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("cuda.graph")
    )


def test_captures_name_what_they_forbid_to_other_threads() -> None:
    """By default it is allocating and waiting, also for other models and on other devices."""
    for path, node in nodes(rooms.FILES, *BEGINS, "graph"):
        if captures(node):
            assert isinstance(node, ast.Call)
            keywords = {keyword.arg for keyword in node.keywords}
            assert "capture_error_mode" in keywords, f"{name(path)}: {ast.unparse(node)}"


def test_that_memory_cannot_be_freed_is_expected() -> None:
    """After a failed capture, or on a lost device, `empty_cache` raises."""
    found = list(nodes(rooms.FILES, "empty_cache"))
    tried = {
        node
        for _, each in found
        if isinstance(each, ast.Try) and each.handlers
        for statement in each.body
        for node in ast.walk(statement)
    }
    freed = [(path, node) for path, node in found if name_of_call(node) == "empty_cache"]
    assert freed
    assert not [(name(path), ast.unparse(node)) for path, node in freed if node not in tried]


@pytest.mark.parametrize(
    ("code", "captured"),
    [
        ("torch.cuda.graph(made, pool=pool)", True),
        ("cuda.graph(made)", True),
        ("made.capture_begin(pool=pool)", True),
        ("openvino.graph(made)", False),
        ("torch.cuda.graph_pool_handle()", False),
    ],
)
def test_captures_are_recognised(code: str, captured: bool) -> None:
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Expr)
    assert captures(statement.value) is captured


def test_the_files_of_models_at_the_root_know_no_room() -> None:
    for path in ROOT.glob("models/*.py"):
        rooms = {room_of(target) for target in runtime_imports(path) if target in NAMES}
        assert rooms & set(MODEL_ROOMS) <= {"labels"}, name(path)


def test_each_room_of_models_is_a_row() -> None:
    assert {path.parent.name for path in ROOT.glob("models/*/__init__.py")} == set(MODEL_ROOMS)


def test_the_loop_does_not_know_the_run_and_nothing_knows_the_reports() -> None:
    for path in FILES:
        module, targets = module_of(path), set(runtime_imports(path))
        if room_of(module) != "cli" and not module.startswith("models.reports"):
            assert not any(target.startswith("models.reports") for target in targets), module
        if module.startswith("models."):
            allowed = {"models.training.plan"} if module == "models.training.run" else set()
            assert not {"models.training.plan", "models.training.run"} & targets - allowed, module


@pytest.mark.parametrize("module", ["models.architecture", "models.variants", "models.files"])
def test_what_describes_a_network_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MOST_PARAMETERS = 8
# Functions that take more, and why.
MANY_PARAMETERS = {
    "models.training.loop.train": "what is trained on what, how, and who listens: told by name",
}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    first = [*arguments.posonlyargs, *arguments.args][:1]
    bound = any(argument.arg in ("self", "cls") for argument in first)
    return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - bound


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    """Dotted names and how many parameters there are, but of click's commands."""
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}.{node.name}"
            commands = ["click.command" in ast.unparse(each) for each in node.decorator_list]
            if not isinstance(node, ast.ClassDef) and not any(commands):
                yield inner, parameters(node)
        yield from functions(node, inner)


def test_parameters_that_travel_together_are_one() -> None:
    counts = {
        function: count
        for path in FILES
        for function, count in functions(ast.parse(path.read_text("utf-8")), module_of(path))
    }
    many = {function for function, count in counts.items() if count > MOST_PARAMETERS}
    assert many == set(MANY_PARAMETERS)
