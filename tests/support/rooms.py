"""The rooms of `service/` as its real imports draw them.

python -m tests.support.rooms            the picture in CONTRIBUTING.md, then figures
python -m tests.support.rooms --json     the same for programs
python -m tests.support.rooms --write    updates the picture in CONTRIBUTING.md

A room is a folder of `service/`. The ground is the files beside them, which every room but the
client may import. `tests/test_layers.py` says which arrows are allowed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "models", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py"))
GROUND = ("errors", "json_pieces", "logs", "metric_families", "metrics", "runtime")
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PICTURE = re.compile(r"(?<=```mermaid\n).*?(?=```\n)", re.DOTALL)


def module_of(path: Path) -> str:
    """A file's dotted name; that of an `__init__` is its package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = frozenset(module_of(path) for path in FILES)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def room_of(module: str) -> str:
    """The first folder or file below the package: `service.oip.codec` is in `http`."""
    return module.partition(".")[2].partition(".")[0]


@cache
def runtime_imports(path: Path, *, at_start: bool = False) -> tuple[str, ...]:
    """The modules that a file imports, except for type checkers only.

    `at_start`: only those that it imports while it is itself imported, not inside functions.
    """
    found: list[str] = []
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += _imported(node)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        skipped = at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not typing and not skipped:
            # An expression imports nothing.
            nodes += (e for e in ast.iter_child_nodes(node) if not isinstance(e, ast.expr))
    return tuple(found)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of one statement; a name that is no module of ours stands for its module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in NAMES else str(node.module)


@dataclass(frozen=True)
class Box:
    """A room, or a file of the ground. `level` is 1 for a box that imports no other."""

    imports: list[str]
    uses_models: bool
    level: int
    files: int
    lines: int


@cache
def boxes() -> dict[str, Box]:
    """Every box of `service/`, highest level first.

    Raises:
        graphlib.CycleError: rooms import each other in a circle.
    """
    imports: dict[str, set[str]] = {}
    files: dict[str, list[Path]] = {}
    with_models: set[str] = set()
    for path in ROOT.glob("service/**/*.py"):
        if room := room_of(module_of(path)):
            files.setdefault(room, []).append(path)
            targets = set(runtime_imports(path))
            inside = {room_of(target) for target in targets if package_of(target) == "service"}
            imports.setdefault(room, set()).update(inside - {room, ""})
            if any(package_of(target) == "models" for target in targets):
                with_models.add(room)
    levels: dict[str, int] = {}
    for room in TopologicalSorter(imports).static_order():
        levels[room] = 1 + max((levels[below] for below in imports[room]), default=0)
    return {
        room: Box(
            imports=sorted(imports[room], key=lambda below: (-levels[below], below)),
            uses_models=room in with_models,
            level=levels[room],
            files=len(files[room]),
            lines=sum(len(path.read_text("utf-8").splitlines()) for path in files[room]),
        )
        for room in sorted(imports, key=lambda room: (-levels[room], room))
    }


def picture(drawn: Mapping[str, Box]) -> str:
    """Mermaid: an arrow for each room that imports another.

    The ground and `models` have no arrows, because nearly every room would have one to each;
    their boxes name the rooms that do not import them.
    """
    rooms = {name: box for name, box in drawn.items() if name not in GROUND}
    without_ground = [name for name, box in rooms.items() if not {*box.imports} & {*GROUND}]
    without_models = [name for name, box in rooms.items() if not box.uses_models]
    lines = ["flowchart TD"]
    for name, box in rooms.items():
        below = [other for other in box.imports if other in rooms]
        lines.append(f"    {name} --> {' & '.join(below)}" if below else f"    {name}")
    ground = "<br>".join(f"{name}.py" for name in GROUND)
    lines += [
        f'    ground["{ground}<br><i>imported by {_all_but(without_ground)}</i>"]',
        f'    models[("models/<br><i>imported by {_all_but(without_models)}</i>")]',
        "",
    ]
    return "\n".join(lines)


def _all_but(rooms: list[str]) -> str:
    return f"all but {', '.join(sorted(rooms))}" if rooms else "all"


def figures(drawn: Mapping[str, Box]) -> str:
    rows = [f"{'':<12}{'level':>8}{'imports':>9}{'files':>7}{'lines':>8}"]
    rows += [
        f"{name:<12}{box.level:>8}{len(box.imports):>9}{box.files:>7}{box.lines:>8,}"
        for name, box in drawn.items()
    ]
    total = totals(drawn)
    return "\n".join(
        [*rows, "", ", ".join(f"{value:,} {name}" for name, value in total.items()), ""]
    )


def totals(drawn: Mapping[str, Box]) -> dict[str, int]:
    return {
        "boxes": len(drawn),
        "levels": max(box.level for box in drawn.values()),
        "arrows": sum(len(box.imports) for box in drawn.values()),
        "files": sum(box.files for box in drawn.values()),
        "lines": sum(box.lines for box in drawn.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.rooms",
        description="The rooms of service/ as its real imports draw them.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="update CONTRIBUTING.md")
    options = parser.parse_args()
    drawn = boxes()
    if options.write:
        text = CONTRIBUTING.read_text("utf-8")
        CONTRIBUTING.write_text(PICTURE.sub(lambda _: picture(drawn), text), "utf-8")
    elif options.json:
        rooms = {name: asdict(box) for name, box in drawn.items()}
        print(json.dumps({**totals(drawn), "rooms": rooms}, indent=2))
    else:
        print(picture(drawn), figures(drawn), sep="\n", end="")


if __name__ == "__main__":
    main()
