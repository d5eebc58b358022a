"""`resnet-serve train`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from models import files
from models.training.recipe import CHOICES, Recipe
from models.training.recipes import by_name
from service.cli import completers, effects, preparation
from service.cli.headed import Headed
from service.cli.options import FILE, PATH, Field, Seeds, code_flag, fail_in_one_line, take
from service.cli.outputs import form_flags, overwrite_flag
from service.cli.recipe_flags import AUGMENTATION, OPTIMISATION, STRUCTURE, recipe_options
from service.cli.training_data import TrainingData, ValidationParameter
from service.cli.training_output import (
    Teller,
    TrainingOutput,
    conclude,
    train_one,
)

if TYPE_CHECKING:
    from models.blocks import BlockFactory
    from models.bundle import Bundle
    from models.preprocess import InputSpec
    from models.training.plan import Plan

DEFAULT_VARIANT = "resnet20"
DEFAULT_RECIPE, FINE_TUNING = "quick", "finetune"
HEADINGS = {
    "Network": (
        *("variant", "weights", "block", "allow_code", "overrides", "shortcut"),
        *STRUCTURE,
    ),
    "Data": ("data", "validation", "test_data", "hold_out", "corrupt", "workers"),
    "Images": preparation.INPUT,
    "Schedule": ("recipe_name", "epochs", "iterations"),
    "Optimisation": tuple(OPTIMISATION),
    "Augmentation": tuple(AUGMENTATION),
    "Computing": (
        *("device", "precision", "accumulate", "checkpoint_blocks", "local_norm", "eager"),
    ),
    "Model": ("name", "card", "views", "storage"),
    "Run": ("seed", "seeds", "resume", "restart", "overwrite", "quiet", "list_recipes"),
}


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

    def kind_of_block(self, start: Bundle | None) -> str:
        """The kind of the network's blocks."""
        from models import variants

        base = start or variants.variant(self.variant or DEFAULT_VARIANT)
        return variants.override(base.architecture, **self.changes).block


def show_recipes(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Prints the table of recipes and exits."""
    if wanted and not context.resilient_parsing:
        from models.reports.overview import overview

        click.echo(overview())
        context.exit()


@click.command(cls=Headed, headings=HEADINGS)
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
@click.option("--data", required=True, type=PATH, help="Folder, archive or list of images.")
@click.option(
    "--validation",
    type=ValidationParameter(),
    help="Images that measure each epoch, choose what is kept and fit the temperature: a share or "
    "a number of --data, equally of each class, or another set.  [default: none; 20% or the "
    "set's own val/ if the recipe keeps the best epoch]",
)
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
    "temperature on instead of on the validation images.",
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
@preparation.preparation(preparation.Statistics())
@click.option(
    "--recipe",
    "recipe_name",
    shell_complete=completers.recipe,
    help="A recipe of --list-recipes. The options below replace its values.  [default: "
    f"{DEFAULT_RECIPE}; {FINE_TUNING} with --weights]",
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
    "--checkpoint-blocks",
    is_flag=True,
    help="Keep only the inputs of the blocks for the gradients, and compute the rest again: less "
    "memory, a third more time.",
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
@form_flags("plain, or those of --weights", "fp32")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--restart", is_flag=True, help="Discard an interrupted run.")
@overwrite_flag
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
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
    recipe_name: str | None,
    device: str,
    precision: str,
    accumulate: int,
    checkpoint_blocks: bool,
    local_norm: bool,
    eager: bool,
    **options: Any,
) -> None:
    """Trains a network and writes it to the bundle OUT, with a log in a folder beside it.

    With --weights, it fine-tunes a model on the images of --data, whatever their classes.

    --resume continues an interrupted run. Under torchrun, several processes train together:
    `torchrun --nproc-per-node 2 --no-python resnet-serve train ...`.
    """
    from models.training import memory

    memory.keep_freed()
    from models.evaluation import temperature
    from models.training import parallel
    from models.training.loop import Options
    from models.training.plan import Plan
    from service.runtime import cpus

    network, data, output = (
        take(Network, options),
        take(TrainingData, options),
        take(TrainingOutput, options),
    )
    prepared = {name: options.pop(name) for name in preparation.INPUT}
    output.check()
    recipe_name = recipe_name or (FINE_TUNING if network.weights else DEFAULT_RECIPE)
    recipe = effects.replaced(by_name(recipe_name), **options)
    start, usual = network.load()
    block = network.own_block()
    effects.check_given(
        options, recipe, network.changes, network.kind_of_block(start), starts=start is not None
    )
    spec = preparation.changed(_normalised(usual, recipe, start), prepared)
    if data.hold_out:
        temperature.check_count(data.hold_out, ", or leave out --hold-out")
    computing = Options(
        precision=precision,
        compiled=not eager,
        accumulate=accumulate,
        global_norm=not local_norm,
        checkpoint_blocks=checkpoint_blocks,
    )
    card = files.read_text(output.card) if output.card else ""
    with parallel.join(device, cpus()) as world:
        teller = Teller(hidden=data.quiet or not world.leads)
        sets = data.sets(validates=effects.validates(recipe), teller=teller)
        data.advise(sets, spec, teller)
        spec = data.measured(spec, prepared, sets.training)
        recipe = effects.cropped(recipe, spec, options, teller)
        source = data.open(sets.training, spec, recipe, world)
        recipe = effects.sized(recipe, source, options, world.size * accumulate, teller)
        if sets.validation is None:
            recipe = effects.without_validation(recipe, options)
        plan = Plan(
            variant=network.variant or DEFAULT_VARIANT,
            overrides=network.changes,
            block=block,
            start=start,
            source=source,
            recipe=recipe,
            recipe_name=recipe_name,
            seed=output.seed or 0,
            prepared=spec if spec != usual else None,
            tests=tuple(data.read(test, spec) for test in sets.tests),
            validation=data.read(sets.validation, spec, "{} for validation of {}"),
            held_out=data.read(sets.held_out, spec, "{} held out of {}"),
            views=output.views or (start.views if start else "plain"),
            storage=output.storage,
        )
        plan.architecture()
        described = {"name": output.name or _name(plan), "card": card}
        for seed, path in output.by_seed.items():
            if output.is_complete(path):
                teller.say(f"{path} is complete")
                continue
            with output.claimed(path) if world.leads else nullcontext():
                world.wait()
                train_one(replace(plan, seed=seed), path, described, world, computing, teller)
        if world.leads:
            conclude(output, teller)


def _normalised(spec: InputSpec, recipe: Recipe, start: Bundle | None) -> InputSpec:
    """With the recipe's mean and standard deviation; weights keep those they were trained with."""
    if start is not None:
        return spec
    return replace(spec, mean=recipe.mean or spec.mean, std=recipe.std or spec.std)


def _name(plan: Plan) -> str:
    from models import naming

    network = (plan.start.variant or plan.start.name) if plan.start else plan.variant
    return naming.name_from(f"{network}-{plan.source.source.split('.')[0]}")
