"""Training results with published figures, as a Markdown table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from models import summary
from models.architecture import Architecture
from models.reports.published import Published
from models.reports.results import Result, Spread
from models.resnet import on_meta
from models.training.recipes import RECIPES

COLUMNS = (
    "model",
    "parameters",
    "layers",
    "data",
    "recipe",
    "seeds",
    "top-1 error, %",
    "papers, %",
    "torch-resnet, %",
    "hardware",
    "images/s",
    "hours",
)
NUMBERS = ("parameters", "layers", "seeds", "top-1 error, %", "images/s", "hours")


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results for other programs: errors as percentages, hours of one run."""
    return [_described(result) for result in results]


def _described(result: Result) -> dict[str, Any]:
    first = result.runs[0]
    network = on_meta(first.architecture)

    def spread(of: Spread | None) -> dict[str, float] | None:
        return None if of is None else {k: round(v, 4) for k, v in asdict(of).items()}

    return {
        "model": first.variant or _shape(first.architecture),
        "overrides": first.overrides,
        "parameters": summary.count_parameters(network),
        "layers": summary.count_layers(network),
        "data_set": first.data_set,
        "data": first.data,
        "test": {"source": first.test, "images": first.images},
        "recipe": first.recipe,
        "top1_error": spread(result.error),
        "best_top1_error": spread(result.best_error),
        "top5_error": spread(
            Spread.of([None if run.top5 is None else 100 * (1 - run.top5) for run in result.runs])
        ),
        "images_per_second": spread(result.images_per_second),
        "hours": spread(result.hours),
        "hardware": _distinct(run.hardware for run in result.runs),
        "runs": [
            {"bundle": str(run.path), "seed": run.seed, "top1": run.top1} for run in result.runs
        ],
        "published": [
            asdict(row) for by in (False, True) for row in result.published(by_torch_resnet=by)
        ],
    }


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _shape(architecture: Architecture) -> str:
    """A label for a network without a name."""
    blocks, planes = (
        "-".join(map(str, numbers)) for numbers in (architecture.blocks, architecture.planes)
    )
    return f"{architecture.block} {blocks} of {planes}"


def markdown(results: Sequence[Result]) -> str:
    """A table, followed by the sources of the published figures."""
    sources: list[str] = []
    table = [
        _line(COLUMNS),
        _line("---:" if column in NUMBERS else "---" for column in COLUMNS),
        *(_line(_cells(result, sources)) for result in results),
    ]
    notes = [
        "Errors are means ± population standard deviations over seeds; hours are one run's.",
        *(f"[{number}] {source}." for number, source in enumerate(sources, 1)),
    ]
    # Two spaces at the end of a line break it in Markdown.
    return "\n".join(table) + "\n\n" + "  \n".join(notes) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cells(result: Result, sources: list[str]) -> Iterator[str]:
    """The cells of a row; appends the sources that they cite to `sources`."""
    facts, first = _described(result), result.runs[0]
    yield ", ".join([facts["model"], *_assignments(first.overrides)])
    yield f"{facts['parameters'] / 1e6:.2f} M"
    yield str(facts["layers"])
    named = f"{first.data_set}: " if first.data_set else ""
    yield f"{named}{first.data}; {first.test}: {first.images}"
    yield _recipe(first.recipe)
    yield str(len(result.runs))
    several = len(result.runs) > 1
    yield _figure(result.error.mean, result.error.deviation if several else None)
    for by_torch_resnet in (False, True):
        yield (
            "; ".join(
                _cited(row, first.architecture.shortcut, sources)
                for row in result.published(by_torch_resnet=by_torch_resnet)
            )
            or "-"
        )
    yield ", ".join(facts["hardware"]) or "-"
    speed, hours = result.images_per_second, result.hours
    yield f"{speed.mean:.0f}" if speed else "-"
    yield _hours(hours.mean) if hours else "-"


def _figure(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _cited(row: Published, shortcut: str, sources: list[str]) -> str:
    if row.source not in sources:
        sources.append(row.source)
    option = f", option {row.shortcut}" if row.shortcut != shortcut else ""
    return f"{_figure(row.error, row.deviation)} [{sources.index(row.source) + 1}{option}]"


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _recipe(recorded: dict[str, Any]) -> str:
    """A recipe's name, and the fields that differ from the recipe of that name."""
    name = str(recorded.get("name", "unnamed"))
    # As JSON returns it, like the recorded one.
    row = json.loads(json.dumps(asdict(RECIPES[name]))) if name in RECIPES else {}
    changed = {
        key: value
        for key, value in recorded.items()
        if key != "name" and row and (key not in row or row[key] != value)
    }
    return ", ".join([name, *_assignments(changed)])
