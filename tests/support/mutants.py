"""Whether the unit tests notice when their module is changed: `make mutants`.

Mutmut changes one expression of a module at a time and runs the module's own unit tests. What they
let pass is a survivor. All of it happens in a copy of the tree, in the ignored folder `mutants`,
where `mutmut browse` shows the details afterwards. The results go to a file that also says, in
`why`, what a person thought of each survivor; a new one has no such text yet, and fails the run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
MUTMUT = Path(sys.executable).with_name("mutmut")
# Each module, and the unit tests that are to know it.
TESTS = {
    "service/inference/batcher.py": ["tests/service/inference/test_batcher.py"],
    "service/engines/buckets.py": ["tests/service/engines/test_buckets.py"],
    "service/engines/device_share.py": ["tests/service/engines/test_device_share.py"],
    "service/repository/registry.py": ["tests/service/repository/test_registry.py"],
    "service/workers/occupancy.py": ["tests/service/workers/test_occupancy.py"],
    "service/inference/image_headers.py": ["tests/service/inference/test_image_headers.py"],
    "service/http/body.py": ["tests/service/http/test_body.py"],
    "service/http/access.py": ["tests/service/http/test_access.py"],
    "service/config/keys.py": ["tests/service/http/test_access.py"],
    "models/bundle.py": ["tests/models/test_bundle.py", "tests/models/test_bundle_refusals.py"],
    "models/summary.py": ["tests/models/test_summary.py"],
    "models/preprocess.py": [
        "tests/models/test_preprocess.py",
        "tests/service/inference/test_decoding.py",
    ],
}
GOAL = 0.9
EQUIVALENT = "equivalent: "
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"  # with which mutmut says that it is at work
UNNAMEABLE = 255  # its exit status where pytest does not run
# Who hangs or crashes is noticed as well.
KILLED = {"killed", "timeout", "segfault"}
NOT_KILLED = {"survived", "no tests", "suspicious", "timeout", "segfault", "not checked"}
# A mutant that hangs is given up after three times the seconds that its tests take, and these.
PATIENCE = 6
# Processes that only fork have no threads of torch's that a fork would lose.
CONFIG = """[mutmut]
source_paths=
    service/
    models/
only_mutate={module}
pytest_add_cli_args=
    -p
    no:cacheprovider
pytest_add_cli_args_test_selection=
    {tests}
process_isolation=forkserver
timeout_multiplier=3
timeout_constant={seconds}
use_git_change_detection=false
"""


@dataclass
class Survivor:
    """A change that no test noticed: its lines as in a diff, and why that is right."""

    function: str
    change: list[str]
    why: str = ""


@dataclass
class Outcome:
    """What became of a module's mutants; `hanged` of those `killed` ran into the time limit."""

    mutants: int
    killed: int
    hanged: int
    survivors: list[Survivor] = field(default_factory=list)

    @property
    def equivalent(self) -> int:
        """How many survivors do what the module does, so that no test could tell."""
        return sum(each.why.startswith(EQUIVALENT) for each in self.survivors)

    @property
    def share(self) -> float:
        """Of those that do something else, the share that was killed."""
        return self.killed / max(1, self.mutants - self.equivalent)

    @property
    def good(self) -> bool:
        """Whether enough were killed, and each of the others was judged."""
        return self.share >= GOAL and all(each.why for each in self.survivors)


def copy_tree(module: str, again: bool) -> Path:
    """A copy of what the tests of `module` need, as mutmut wants it; `again`: made new."""
    folder = ROOT / "mutants" / module.removesuffix(".py").replace("/", ".")
    if not again:
        shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("service", "models", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def configure(folder: Path, module: str, seconds: float) -> None:
    """Tells mutmut what to do there, and how long it waits for who hangs."""
    tests = "\n    ".join(TESTS[module])
    config = CONFIG.format(module=module, tests=tests, seconds=seconds / 3)
    (folder / "setup.cfg").write_text(config)


def mutmut(folder: Path, *arguments: str) -> str:
    """What `mutmut` says there.

    Raises:
        click.ClickException: it failed; with what it said.
    """
    shared = os.environ.get("RESNET_SERVE_SHARED", "../shared")
    environ = {"OMP_NUM_THREADS": "1", "RESNET_SERVE_SHARED": str((ROOT / shared).resolve())}
    done = subprocess.run(
        [MUTMUT, *arguments],
        cwd=folder,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line[:1] not in SPINNER]
        raise click.ClickException("\n".join([f"mutmut {' '.join(arguments)}:", *said[-50:]]))
    return done.stdout


def survivor(folder: Path, name: str) -> Survivor:
    """The survivor that mutmut calls `name`, as in `x.xǁDeviceShareǁrelease__mutmut_3`."""
    lines = mutmut(folder, "show", name).splitlines()
    change = [line for line in lines if line[:1] in "+-" and line[:3] not in {"+++", "---"}]
    function = name.rpartition("__mutmut_")[0].rpartition(".")[2]
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Survivor(function, [" ".join(line.split()) for line in change if line])


def results(folder: Path, module: str) -> dict[str, str]:
    """What became of each mutant, by its name.

    Raises:
        click.ClickException: mutmut could not name a test to pytest, and took that for a hang.
    """
    written = json.loads((folder / "mutants" / f"{module}.meta").read_text("utf-8"))
    codes: dict[str, int | None] = written["exit_code_by_key"]
    if UNNAMEABLE in codes.values():
        raise click.ClickException(f"a test of {module} has a parameter that cannot be named")
    lines = mutmut(folder, "results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line)


def measure(module: str, processes: int, again: bool) -> Outcome:
    """Runs all mutants of `module`, or `again` those that no test's failure has killed."""
    folder = copy_tree(module, again)
    run = ("run", "--max-children", str(processes))
    if not again:
        configure(folder, module, seconds=PATIENCE)
        mutmut(folder, *run)
    # What was late may only have been slow, on a machine that has other things to do.
    doubtful = NOT_KILLED if again else {"timeout"}
    if names := [name for name, status in results(folder, module).items() if status in doubtful]:
        configure(folder, module, seconds=5 * PATIENCE)
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # of the old tests
        mutmut(folder, *run, *names)
    statuses = results(folder, module)
    count = Counter(statuses.values())
    return Outcome(
        mutants=len(statuses),
        killed=sum(count[status] for status in KILLED),
        hanged=count["timeout"],
        survivors=[
            survivor(folder, name) for name, status in statuses.items() if status not in KILLED
        ],
    )


def judged(outcome: Outcome, known: list[dict[str, Any]]) -> Outcome:
    """`outcome` with what was said before of the same survivors."""
    texts = {(each["function"], *each["change"]): each["why"] for each in known}
    for each in outcome.survivors:
        each.why = texts.get((each.function, *each.change), "")
    return outcome


def table(outcomes: dict[str, Outcome]) -> str:
    """Markdown, a row for each module; `share` is of the mutants that are not equivalent."""
    rows = [
        "| module | mutants | killed | equivalent | others | share |",
        "|---|---|---|---|---|---|",
    ]
    for module, found in outcomes.items():
        others = len(found.survivors) - found.equivalent
        rows.append(
            f"| `{module}` | {found.mutants} | {found.killed} | {found.equivalent} | {others} "
            f"| {found.share:.1%} |"
        )
    return "\n".join(rows)


@click.command()
@click.argument("modules", nargs=-1, type=click.Choice(list(TESTS)))
@click.option("--processes", default=os.cpu_count(), show_default=True, help="Mutants at a time.")
@click.option("--again", is_flag=True, help="Only those that survived, with the present tests.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(modules: tuple[str, ...], processes: int, again: bool, output: Path) -> None:
    """Mutates MODULES, or all of them, and writes what survived."""
    before = json.loads(output.read_text()) if output.exists() else {"modules": {}}
    written: dict[str, Any] = before["modules"]
    outcomes: dict[str, Outcome] = {}
    for module in modules or TESTS:
        known = written.get(module, {}).get("survivors", [])
        outcomes[module] = found = judged(measure(module, processes, again), known)
        written[module] = asdict(found)
        click.echo(f"{module}: {found.killed} of {found.mutants} killed")
        for each in found.survivors:
            if not each.why:
                click.echo("\n".join([f"  {each.function}:", *map("    {}".format, each.change)]))
        result = {
            "tool": f"mutmut {version('mutmut')}",
            "modules": {name: written[name] for name in TESTS if name in written},
        }
        output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    click.echo(table(outcomes))
    sys.exit(not all(found.good for found in outcomes.values()))


if __name__ == "__main__":
    main()
