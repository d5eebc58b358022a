"""`resnet-serve train`."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from service.cli import completers
from service.cli.options import (
    Field,
    Seeds,
    fail_in_one_line,
    open_source,
    part_of,
    read_dataset,
)

if TYPE_CHECKING:
    from models.data.datasets import Corrupt
    from models.training.history import Epoch
    from models.training.loop import Options, Progress
    from models.training.parallel import World
    from models.training.recipes import Recipe
    from models.training.run import Plan


def show_recipes(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Prints the table of recipes and ends."""
    if wanted and not context.resilient_parsing:
        from models.reports.overview import overview

        click.echo(overview())
        context.exit()


@click.command()
@click.option(
    "--variant", shell_complete=completers.variant, help="Network to train.  [default: resnet20]"
)
@click.option(
    "--weights",
    metavar="SPEC",
    shell_complete=completers.spec,
    help="Begin with a model's weights, and train its network, instead of a variant's.",
)
@click.option(
    "--set",
    "overrides",
    type=Field(),
    multiple=True,
    help="A field of its architecture: --set blocks=[1,1,1].",
)
@click.option(
    "--shortcut", type=click.Choice(["A", "B", "C", "conv"]), help="Default: the recipe's, or B."
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A folder or archive.")
@click.option(
    "--test-data",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Measured in the end, the first also after each epoch; may be given several times.",
)
@click.option(
    "--hold-out",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Images of --data kept from training, to fit the temperature on.",
)
@click.option(
    "--corrupt",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What an image that cannot be read does.",
)
@click.option("--workers", type=click.IntRange(0), help="Processes that decode; default: by CPUs.")
@click.option(
    "--recipe",
    "recipe_name",
    default="quick",
    show_default=True,
    shell_complete=completers.recipe,
    help="A row of --list-recipes.",
)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="Stretches the schedule.")
@click.option("--iterations", type=click.IntRange(1), help="Stretches the schedule.")
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True))
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True))
@click.option("--nesterov/--no-nesterov", default=None)
@click.option("--weight-decay", type=click.FloatRange(0))
@click.option("--decays", type=click.Choice(["weights", "all"]))
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True))
@click.option("--crop-padding", type=click.IntRange(0), metavar="PIXELS")
@click.option("--cutout", type=click.IntRange(0), metavar="PIXELS")
@click.option("--mixup", type=click.FloatRange(0), metavar="ALPHA")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), metavar="DECAY")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--seeds", type=Seeds(), help="A run for each: OUT-111, OUT-222, ... .")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=completers.device,
    help="auto, cpu or cuda:N.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Parts that a batch is computed in.",
)
@click.option("--local-norm", is_flag=True, help="Each process normalises by its own images.")
@click.option("--eager", is_flag=True, help="Do not compile the network.")
@click.option("--name", help="The model's name; default: the variant and the data.")
@click.option(
    "--card",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Markdown: what the model is for.",
)
@click.option("--resume", is_flag=True, help="Go on where the run was stopped.")
@click.option("--restart", is_flag=True, help="Forget a run that was stopped.")
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_recipes,
    help="Print the recipes.",
)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@fail_in_one_line
def train(
    variant: str | None,
    weights: str | None,
    overrides: tuple[tuple[str, Any], ...],
    shortcut: str | None,
    data: Path,
    test_data: tuple[Path, ...],
    hold_out: int,
    corrupt: Corrupt,
    workers: int | None,
    recipe_name: str,
    seed: int,
    seeds: tuple[int, ...] | None,
    device: str,
    precision: str,
    accumulate: int,
    local_norm: bool,
    eager: bool,
    name: str | None,
    card: Path | None,
    resume: bool,
    restart: bool,
    out: Path,
    **fields: Any,
) -> None:
    """Trains a network and writes the bundle OUT; its log goes to a folder beside it.

    A run that was stopped goes on with --resume. Under torchrun, several processes train together:
    `torchrun --nproc-per-node 2 -m service.cli train ...`.
    """
    from models.training import memory

    memory.keep_freed()
    from models import bundle, variants
    from models.training import parallel, recipes
    from models.training.loop import Options
    from models.training.run import Plan
    from service.repository import catalog
    from service.runtime import cpus

    if resume and restart:
        raise ValueError("--resume or --restart, not both")
    if weights and variant:
        raise ValueError("--weights or --variant, not both: weights have their own network")
    start = catalog.load(weights).bundle if weights else None
    variant = variant or "resnet20"
    row = start or variants.variant(variant)
    changes = dict(overrides) | ({"shortcut": shortcut} if shortcut else {})
    variants.override(row.architecture, **changes)
    recipe = _recipe(recipes.by_name(recipe_name), **fields)
    outs = {each: out.with_stem(f"{out.stem}-{each}") for each in seeds} if seeds else {seed: out}
    for path in outs.values():  # Said now, not after the training.
        _check(path, resume=resume, restart=restart)
    options = Options(
        precision=precision,
        compiled=not eager,
        accumulate=accumulate,
        global_norm=not local_norm,
    )
    text = card.read_text("utf-8") if card else ""
    with parallel.join(device, cpus()) as world:
        source, held_out = open_source(
            data, row.input, recipe, world, hold_out=hold_out, corrupt=corrupt, workers=workers
        )
        tested = test_data or ([data] if part_of(data, "test") else [])
        tests = tuple(read_dataset(each, row.input, corrupt) for each in tested)
        for number, path in outs.items():
            plan = Plan(
                variant=variant,
                overrides=changes,
                start=start,
                source=source,
                recipe=recipe,
                recipe_name=recipe_name,
                seed=number,
                tests=tests,
                held_out=held_out,
            )
            plan.architecture()
            if resume and path.exists() and not _state(path).exists():
                if world.leads:
                    click.echo(f"{path} is done")
                continue
            if world.leads and not resume:
                shutil.rmtree(_folder(path), ignore_errors=True)
            world.wait()
            network = (start.variant or start.name) if start else variant
            called = name or bundle.name_from(f"{network}-{source.source.split('.')[0]}")
            _one(plan, path, called, text, world, options)
        if world.leads:
            _conclude(list(outs.values()), out)


def _recipe(row: Recipe, epochs: float | None, iterations: int | None, **fields: Any) -> Recipe:
    if epochs is not None and iterations is not None:
        raise ValueError("--epochs or --iterations, not both")
    if epochs is not None:
        row = row.lasting("epochs", epochs)
    if iterations is not None:
        row = row.lasting("iterations", iterations)
    return replace(row, **{name: value for name, value in fields.items() if value is not None})


def _folder(out: Path) -> Path:
    return out.with_suffix(".run")


def _state(out: Path) -> Path:
    from models.training.run import STATE

    return _folder(out) / STATE


def _check(out: Path, *, resume: bool, restart: bool) -> None:
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    if _state(out).exists() and not resume and not restart:
        raise ValueError(
            f"{_folder(out)} holds a run that was stopped; --resume goes on with it, "
            "--restart forgets it"
        )


def _one(plan: Plan, out: Path, name: str, card: str, world: World, options: Options) -> None:
    from models import bundle
    from models.training.run import train_bundle

    folder = _folder(out)
    folder.mkdir(exist_ok=True)
    with tqdm(total=1, unit=" steps", desc=out.stem, disable=not world.leads) as bar:

        def report(at: Progress) -> None:
            if not world.leads:
                return
            bar.total = at.steps
            bar.initial = bar.initial or at.step
            bar.set_postfix_str(
                f"epoch {at.epoch + 1}, loss {at.loss:.3f}, accuracy {at.accuracy:.1%}, "
                f"{at.images_per_second:.0f} images/s",
                refresh=False,
            )
            bar.update(at.step - bar.n)

        def tell(row: Epoch) -> None:
            if row.test_top1 is not None:
                bar.write(f"epoch {row.epoch}: loss {row.loss:.3f}, test top-1 {row.test_top1:.2%}")

        trained = train_bundle(
            plan,
            name=name,
            folder=folder,
            card=card,
            world=world,
            options=options,
            report=report,
            after_epoch=tell,
        )
    if not world.leads:
        return
    bundle.write(trained, out)
    _state(out).unlink()
    _draw([folder], folder / "curves.png")
    for source, figures in trained.metrics.items():
        click.echo(f"{source}: top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%}")
    click.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), its log and curves to {folder}")


def _conclude(outs: list[Path], out: Path) -> None:
    """Mean and standard deviation over the seeds."""
    from models import bundle

    if len(outs) < 2:
        return
    found = [bundle.read(path).metrics for path in outs]
    for source in found[0]:
        top1 = [figures[source]["top1"] for figures in found]
        click.echo(
            f"{source}, {len(top1)} seeds: top-1 {statistics.fmean(top1):.2%} "
            f"+- {statistics.pstdev(top1):.2%}"
        )
    picture = out.with_name(f"{out.stem}-curves.png")
    _draw([_folder(path) for path in outs], picture)


def _draw(runs: list[Path], picture: Path) -> None:
    from models.training import history

    try:
        history.curves(runs, picture)
    except ValueError as error:  # The bundle is there; a picture is not worth failing for.
        click.echo(f"no curves: {error}", err=True)
