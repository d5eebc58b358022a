"""Training results with published figures, as a Markdown table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from models import summary
from models.architecture import Architecture
from models.reports.overview import schedule
from models.reports.published import Published
from models.reports.results import WORDS, Result, Spread
from models.resnet import on_meta
from models.training.recipe import Recipe, completed, has_effect, json_values
from models.training.recipes import RECIPES

COLUMNS = (
    "model",
    "parameters",
    "layers",
    "data",
    "recipe",
    "seeds",
    "AMP",
    "top-1 error, %",
    "best, %",
    "papers, %",
    "torch-resnet, %",
    "hardware",
    "images/s",
    "hours",
)
NUMBERS = ("parameters", "layers", "seeds", "top-1 error, %", "best, %", "images/s", "hours")
AMP = {"mixed": "yes", "full": "no", "": "-"}


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
        "precision": first.precision or None,
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
        "AMP is mixed precision. The best epoch is chosen on the test images, which flatters it.",
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
    yield _recipe(first.recipe, first.architecture)
    yield str(len(result.runs))
    yield AMP[first.precision]
    several = len(result.runs) > 1
    for spread in (result.error, result.best_error):
        yield _figure(spread.mean, spread.deviation if several else None) if spread else "-"
    for by_torch_resnet in (False, True):
        yield (
            "; ".join(
                _cited(row, result, sources)
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


def _cited(row: Published, result: Result, sources: list[str]) -> str:
    """The figure with its source and with what differs from the result."""
    if row.source not in sources:
        sources.append(row.source)
    run = result.runs[0]
    zero_init = completed(run.recipe)["zero_init_residual"]
    notes = [str(sources.index(row.source) + 1)]
    notes += [f"option {row.shortcut}"] if row.shortcut != run.architecture.shortcut else []
    notes += ["no zero init"] if zero_init and not row.zero_init_residual else []
    notes += [f"{row.precision} precision"] if row.precision not in ("", run.precision) else []
    notes += [f"{row.epoch} epoch"] if row.epoch == "best" else []
    return f"{_figure(row.error, row.deviation)} [{', '.join(notes)}]"


def _assignments(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _recipe(recorded: dict[str, Any], architecture: Architecture) -> str:
    """A recipe's name, and what differs from the recipe of that name."""
    name = str(recorded.get("name", "unnamed"))
    if name not in RECIPES:
        return name
    recipe, row = RECIPES[name], json_values(RECIPES[name])
    made = {**row, **completed(recorded)}  # In the order of the fields.
    changed = {
        key: value
        for key, value in made.items()
        if key not in ("name", *WORDS)
        and (key not in row or (row[key] != value and has_effect(key, made)))
    }
    if architecture.block == "basic":
        changed.pop("stride_at", None)
    words = []
    if "unit" in changed or "phases" in changed:
        fields = {key: made[key] for key in ("unit", "phases", "learning_rate")}
        own = replace(recipe, **fields)
        changed = {key: value for key, value in changed.items() if key not in ("unit", "phases")}
        if _is_stretched(recipe, own):
            words = [f"{own.length:,g} {own.unit}"]
        else:
            changed.pop("learning_rate", None)
            words = [f"schedule {schedule(own)}"]
    return ", ".join([name, *words, *_assignments(changed)])


def _is_stretched(recipe: Recipe, own: Recipe) -> bool:
    """Whether `own` has the schedule of `recipe`, but another length."""
    stretched = recipe.lasting(own.unit, own.length).phases
    return len(stretched) == len(own.phases) and all(
        (a.factor, a.shape) == (b.factor, b.shape) and math.isclose(a.until, b.until)
        for a, b in zip(stretched, own.phases, strict=True)
    )
