"""`resnet-serve train`."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import click
from tqdm import tqdm

from models.training.recipes import CHOICES, LIMITS, Recipe, by_name
from service.cli import completers, effects
from service.cli.options import (
    FILE,
    PATH,
    Field,
    Seeds,
    code_flag,
    fail_in_one_line,
    part_of,
    read_dataset,
    take,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.datasets import Corrupt, Dataset
    from models.data.source import Source
    from models.preprocess import InputSpec
    from models.resnet import BlockFactory
    from models.training.history import Epoch
    from models.training.loop import Options, Progress
    from models.training.parallel import World
    from models.training.run import Plan

DEFAULT_VARIANT = "resnet20"
# The fields of `Recipe` that are options, with their help.
FIELDS = {
    "batch_size": "Images per step, over all processes.",
    "learning_rate": "Peak learning rate.",
    "momentum": "Momentum of SGD.",
    "nesterov": "Use Nesterov momentum.",
    "weight_decay": "Weight decay.",
    "decays": "Decay only the weights of convolutions and linear layers, or all parameters.",
    "label_smoothing": "Probability that label smoothing spreads over all classes.",
    "crop_padding": "Padding before a random crop, for images of up to 64 pixels.",
    "cutout": "Side of the square that cutout greys out; 0: none.",
    "mixup": "Alpha of mixup's beta distribution; 0: none.",
    "ema": "Decay of the exponential moving average of the weights; 0: none.",
    "dropout": "Dropout between the convolutions of a basic block.",
}
METAVARS = {"crop_padding": "PIXELS", "cutout": "PIXELS", "mixup": "ALPHA", "ema": "DECAY"}


@dataclass(frozen=True)
class Network:
    """What is trained: a `variant`, or the network of a model whose `weights` it starts from."""

    variant: str | None
    weights: str | None
    block: str | None
    allow_code: list[str] | None
    overrides: tuple[tuple[str, Any], ...]
    shortcut: str | None

    @property
    def changes(self) -> dict[str, Any]:
        """Overrides of fields of the architecture.

        Raises:
            ValueError: a field is given twice.
        """
        pairs = [*self.overrides, *([("shortcut", self.shortcut)] if self.shortcut else [])]
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice} is given twice; give it once")
        return dict(pairs)

    def load(self) -> tuple[Bundle | None, InputSpec]:
        """The weights to start from, if any, and the network's input.

        Raises:
            ValueError: there is no such network, or an override is impossible.
        """
        from models import variants
        from service.repository import catalog

        if self.weights and self.variant:
            raise ValueError("--weights or --variant, not both: weights have their own network")
        if self.weights and self.block:
            raise ValueError("--weights or --block, not both: weights have their own blocks")
        start = catalog.load(self.weights, allow=self.allow_code).bundle if self.weights else None
        network = start or variants.variant(self.variant or DEFAULT_VARIANT)
        variants.override(network.architecture, **self.changes)
        return start, network.input

    def own_block(self) -> BlockFactory | None:
        """The block that the user names instead of the variant's, if any.

        Raises:
            ValueError: it is no import path, or cannot be imported.
        """
        from models import own_code

        if not self.block:
            return None
        own_code.check_path(self.block, "--block")
        found: BlockFactory = own_code.imported(self.block, "block", [self.block])
        return found


@dataclass(frozen=True)
class TrainingData:
    data: Path
    test_data: tuple[Path, ...]
    hold_out: int
    corrupt: Corrupt
    workers: int | None

    def tests(self, spec: InputSpec) -> tuple[Dataset, ...]:
        paths = self.test_data or ([self.data] if part_of(self.data, "test") else [])
        return tuple(read_dataset(path, spec, self.corrupt) for path in paths)

    def open(self, spec: InputSpec, recipe: Recipe, world: World) -> tuple[Source, Dataset | None]:
        """What a recipe trains on, and the images held out from it, if any.

        Raises:
            ValueError: see `models.data.source.open_source` and `held_out`.
        """
        from models.data import source
        from models.data.loading import Loading
        from models.training.run import augmentation
        from service.runtime import cpus

        held_out = None
        if self.hold_out:
            held_out = source.held_out(self.data, spec, self.hold_out, corrupt=self.corrupt)
        with tqdm(desc=self.data.name, unit=" images", disable=not world.leads) as bar:
            opened = source.open_source(
                self.data,
                spec,
                world.device,
                hold_out=self.hold_out,
                augmentation=augmentation(recipe, spec),
                loading=Loading(
                    corrupt=self.corrupt,
                    workers=cpus() if self.workers is None else self.workers,
                    resident=None if recipe.crops == "padded" else False,
                    report=tqdm.write,
                    progress=lambda count: bar.update(count - bar.n),
                ),
            )
        return opened, held_out


@dataclass(frozen=True)
class TrainingOutput:
    out: Path
    seed: int | None
    seeds: tuple[int, ...] | None
    name: str | None
    card: Path | None
    resume: bool
    restart: bool

    @property
    def by_seed(self) -> dict[int, Path]:
        """The bundle to write for each seed."""
        if not self.seeds:
            return {self.seed or 0: self.out}
        return {seed: self.out.with_stem(f"{self.out.stem}-{seed}") for seed in self.seeds}

    def check(self) -> None:
        """Fails now, not after the training."""
        if self.resume and self.restart:
            raise ValueError("--resume or --restart, not both")
        if self.seed is not None and self.seeds:
            raise ValueError("--seed or --seeds, not both")
        for path in self.by_seed.values():
            if not path.parent.is_dir():
                raise ValueError(f"{path}: there is no folder {path.parent}")
            if _state(path).exists() and not self.resume and not self.restart:
                raise ValueError(
                    f"{_folder(path)} holds an interrupted run; use --resume to continue it or "
                    "--restart to discard it"
                )


def show_recipes(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Prints the table of recipes and exits."""
    if wanted and not context.resilient_parsing:
        from models.reports.overview import overview

        click.echo(overview())
        context.exit()


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each of FIELDS; without it the recipe keeps its value."""
    hints = get_type_hints(Recipe)
    # The architecture limits dropout; a recipe may leave it open.
    limits = {name: (low, high) for name, low, high in LIMITS} | {"dropout": (0, 1)}
    for name, text in reversed(FIELDS.items()):
        flag, kind = name.replace("_", "-"), hints[name]
        option: click.ParamType[Any] | None = None
        if kind is bool:
            flag = f"{flag}/--no-{flag}"
        elif get_origin(kind) is Literal:
            option = click.Choice(get_args(kind))
        else:
            low, high = (int(limit) if limit < math.inf else None for limit in limits[name])
            option = (click.IntRange if kind is int else click.FloatRange)(
                low, high, min_open=name == "learning_rate", max_open=high is not None
            )
        command = click.option(
            f"--{flag}", type=option, default=None, metavar=METAVARS.get(name), help=text
        )(command)
    return command


@click.command()
@click.option(
    "--variant",
    shell_complete=completers.variant,
    help=f"Network to train.  [default: {DEFAULT_VARIANT}]",
)
@click.option(
    "--weights",
    metavar="SPEC",
    shell_complete=completers.spec,
    help="Start from a model's weights and train its network, instead of --variant.",
)
@click.option(
    "--block",
    metavar="MODULE:CLASS",
    help="Build the network of a block of your own, imported from MODULE, instead of --variant's.",
)
@code_flag
@click.option(
    "--set",
    "overrides",
    type=Field(),
    multiple=True,
    help="Set a field of the network's architecture: --set blocks=[1,1,1].",
)
@click.option(
    "--shortcut",
    type=click.Choice(CHOICES["shortcut"][1:]),
    help="Shortcut option.  [default: the recipe's, or B]",
)
@click.option("--data", required=True, type=PATH, help="Folder or archive of images.")
@click.option(
    "--test-data",
    type=PATH,
    multiple=True,
    help="Test set, measured at the end; repeat for several. The first is also measured after "
    "each epoch.",
)
@click.option(
    "--hold-out",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Hold this many images of --data out of training, hundreds of them, to fit the "
    "temperature on.",
)
@click.option(
    "--corrupt",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do about unreadable images.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that decode images.  [default: one per CPU]",
)
@click.option(
    "--recipe",
    "recipe_name",
    default="quick",
    shell_complete=completers.recipe,
    help="A recipe of --list-recipes. The options below replace its values.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    help="Stretch the schedule to this many epochs.",
)
@click.option(
    "--iterations", type=click.IntRange(1), help="Stretch the schedule to this many steps."
)
@recipe_options
@click.option("--seed", type=int, help="Seed of all random numbers.  [default: 0]")
@click.option("--seeds", type=Seeds(), help="Make one run per seed: OUT-111, OUT-222, and so on.")
@click.option(
    "--device", default="auto", shell_complete=completers.device, help="auto, cpu or cuda:N."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Precision to compute in; auto is the fastest on this hardware.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    help="Compute each batch in this many parts, to save memory.",
)
@click.option(
    "--local-norm",
    is_flag=True,
    help="Each process normalises by the statistics of its own images.",
)
@click.option("--eager", is_flag=True, help="Do not compile the network.")
@click.option("--name", help="Name of the model.  [default: made of the variant and the data]")
@click.option(
    "--card", type=FILE, help="Markdown file that describes the model and its intended use."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--restart", is_flag=True, help="Discard an interrupted run.")
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_recipes,
    help="Print the recipes and exit.",
)
@click.argument("out", type=FILE)
@fail_in_one_line
def train(
    recipe_name: str,
    device: str,
    precision: str,
    accumulate: int,
    local_norm: bool,
    eager: bool,
    **options: Any,
) -> None:
    """Trains a network and writes it to the bundle OUT, with a log in a folder beside it.

    --resume continues an interrupted run. Under torchrun, several processes train together:
    `torchrun --nproc-per-node 2 -m service.cli train ...`.
    """
    from models.training import memory

    memory.keep_freed()
    from models.evaluation import temperature
    from models.training import parallel
    from models.training.loop import Options
    from models.training.run import Plan
    from service.runtime import cpus

    network, data, output = (
        take(Network, options),
        take(TrainingData, options),
        take(TrainingOutput, options),
    )
    output.check()
    start, spec = network.load()
    block = network.own_block()
    recipe = _recipe(by_name(recipe_name), **options)
    effects.check_given(options, recipe, network.changes)
    if data.hold_out:
        temperature.check_count(data.hold_out, ", or leave out --hold-out")
    computing = Options(
        precision=precision, compiled=not eager, accumulate=accumulate, global_norm=not local_norm
    )
    card = output.card.read_text("utf-8") if output.card else ""
    with parallel.join(device, cpus()) as world:
        source, held_out = data.open(spec, recipe, world)
        recipe = effects.as_applied(recipe, source, spec, options["crop_padding"], world)
        plan = Plan(
            variant=network.variant or DEFAULT_VARIANT,
            overrides=network.changes,
            block=block,
            start=start,
            source=source,
            recipe=recipe,
            recipe_name=recipe_name,
            seed=output.seed or 0,
            tests=data.tests(spec),
            held_out=held_out,
        )
        plan.architecture()
        name = output.name or _name(plan)
        for seed, path in output.by_seed.items():
            if output.resume and path.exists() and not _state(path).exists():
                if world.leads:
                    click.echo(f"{path} is complete")
                continue
            if world.leads and not output.resume:
                shutil.rmtree(_folder(path), ignore_errors=True)
            world.wait()
            _one(replace(plan, seed=seed), path, name, card, world, computing)
        if world.leads:
            _conclude(list(output.by_seed.values()), output.out)


def _recipe(recipe: Recipe, epochs: float | None, iterations: int | None, **changes: Any) -> Recipe:
    if epochs is not None and iterations is not None:
        raise ValueError("--epochs or --iterations, not both")
    if epochs is not None:
        recipe = recipe.lasting("epochs", epochs)
    if iterations is not None:
        recipe = recipe.lasting("iterations", iterations)
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def _name(plan: Plan) -> str:
    from models import bundle

    network = (plan.start.variant or plan.start.name) if plan.start else plan.variant
    return bundle.name_from(f"{network}-{plan.source.source.split('.')[0]}")


def _folder(out: Path) -> Path:
    return out.with_suffix(".run")


def _state(out: Path) -> Path:
    from models.training.run import STATE

    return _folder(out) / STATE


def _one(plan: Plan, out: Path, name: str, card: str, world: World, options: Options) -> None:
    """Trains and writes one bundle."""
    from models import bundle
    from models.training.run import train_bundle

    folder = _folder(out)
    folder.mkdir(exist_ok=True)
    with tqdm(total=1, unit=" steps", desc=out.stem, disable=not world.leads) as bar:

        def report(progress: Progress) -> None:
            if not world.leads:
                return
            bar.total = progress.steps
            bar.initial = bar.initial or progress.step
            bar.set_postfix_str(
                f"epoch {progress.epoch + 1}, loss {progress.loss:.3f}, "
                f"accuracy {progress.accuracy:.1%}, {progress.images_per_second:.0f} images/s",
                refresh=False,
            )
            bar.update(progress.step - bar.n)

        def after_epoch(row: Epoch) -> None:
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
            after_epoch=after_epoch,
        )
    if not world.leads:
        return
    bundle.write(trained, out)
    _state(out).unlink()
    _draw([folder], folder / "curves.png")
    if reason := trained.provenance.get("calibration", {}).get("undetermined"):
        click.echo(f"no temperature is fitted, it remains 1: {reason}", err=True)
    for source, figures in trained.metrics.items():
        click.echo(f"{source}: top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%}")
    click.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB), its log and curves to {folder}")


def _conclude(outs: list[Path], out: Path) -> None:
    """Prints the mean and standard deviation over the seeds, and draws their curves."""
    from models import bundle

    if len(outs) < 2:
        return
    metrics = [bundle.read(path, allow=None).metrics for path in outs]
    for source in metrics[0]:
        top1 = [figures[source]["top1"] for figures in metrics]
        click.echo(
            f"{source}, {len(top1)} seeds: top-1 {statistics.fmean(top1):.2%} "
            f"+- {statistics.pstdev(top1):.2%}"
        )
    _draw([_folder(path) for path in outs], out.with_name(f"{out.stem}-curves.png"))


def _draw(runs: list[Path], picture: Path) -> None:
    from models.training import history

    try:
        history.curves(runs, picture)
    except ValueError as error:  # The bundle is written; a missing picture is not a failure.
        click.echo(f"no curves: {error}", err=True)
