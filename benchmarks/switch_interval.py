"""How long a thread should wait for Python's interpreter lock before it asks for it.

python -m benchmarks.switch_interval --output results.json

The service under full load with each value of `service.runtime.SWITCH_SECONDS`, all of them in
each round, so that the machine's drift hits all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import images
from benchmarks.common.process import started
from service.cli.load.document import as_text, document
from service.cli.load.runs import closed_loop
from service.cli.load.target import Target

SECONDS = (5e-3, 500e-6, 100e-6, 20e-6)  # CPython's own comes first
CONNECTIONS = (16, 32, 64)
PROGRAM = """
import sys
from service import runtime
runtime.SWITCH_SECONDS = {}
from service.cli.main import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each load")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    given = parser.parse_args()
    sent = images.small(32)
    found: dict[str, dict[str, list[float]]] = {}
    reports = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(given.rounds):
            for value in SECONDS:
                program = ("-c", PROGRAM.format(value))
                arguments = ["--model", given.model]
                with started(arguments, sent[0], Path(cache), program=program) as running:
                    target = Target.of(running.url, sent)
                    for count in CONNECTIONS:
                        report = closed_loop(target, connections=count, seconds=given.seconds)
                        reports.append(report)
                        rates = found.setdefault(f"{value:g}", {}).setdefault(str(count), [])
                        rates.append(report.images_per_second)
    figures = document(target, reports) | {
        "model": given.model,
        "images_per_second": {
            value: {
                count: {"median": statistics.median(rates), "rounds": rates}
                for count, rates in by_count.items()
            }
            for value, by_count in found.items()
        },
    }
    del figures["runs"]  # their order alone would tell which is which
    given.output.write_text(as_text(figures), "utf-8")
    print(json.dumps(figures["images_per_second"], indent=2))


if __name__ == "__main__":
    main()
