"""`resnet-serve train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from service.commands.options import fail_in_one_line, read_dataset


@click.command()
@click.option("--variant", default="resnet20", show_default=True, help="Network to train.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="CLASS/FILE images.")
@click.option("--test-data", type=click.Path(path_type=Path), help="Images to measure accuracy on.")
@click.option("--recipe", default="quick", show_default=True, help="A row of the recipe table.")
@click.option("--epochs", type=click.IntRange(1))
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True))
@click.option("--weight-decay", type=click.FloatRange(0))
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True))
@click.option("--shortcut", type=click.Choice(["A", "B", "C", "conv"]), default="B")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--eager", is_flag=True, help="Do not compile the network.")
@click.option("--name", help="The model's name; default: the variant and the data.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@fail_in_one_line
def train(
    variant: str,
    data: Path,
    test_data: Path | None,
    recipe: str,
    shortcut: str,
    seed: int,
    device: str,
    eager: bool,
    name: str | None,
    out: Path,
    **fields: Any,
) -> None:
    """Trains a network and writes the bundle OUT."""
    from models import bundle, variants
    from models.training.loop import Progress
    from models.training.recipes import RECIPES
    from models.training.run import train_bundle

    if recipe not in RECIPES:
        raise ValueError(f"no recipe is called {recipe!r}; one of {', '.join(RECIPES)}")
    if not out.parent.is_dir():  # Said now, not after the training.
        raise ValueError(f"{out}: there is no folder {out.parent}")
    chosen = replace(RECIPES[recipe], **{k: v for k, v in fields.items() if v is not None})
    spec = variants.variant(variant).input
    images = read_dataset(data, spec)
    test = read_dataset(test_data, spec) if test_data else None
    with tqdm(total=1, unit=" steps", desc=variant) as bar:

        def report(at: Progress) -> None:
            bar.total = at.steps
            bar.set_postfix_str(
                f"epoch {at.epoch + 1}/{chosen.epochs}, loss {at.loss:.3f}, "
                f"accuracy {at.accuracy:.1%}, {at.images_per_second:.0f} images/s",
                refresh=False,
            )
            bar.update(at.step - bar.n)

        trained = train_bundle(
            variant,
            images,
            test,
            chosen,
            name=name or f"{variant}-{images.source.split('.')[0]}",
            seed=seed,
            device=device,
            compiled=not eager,
            report=report,
            shortcut=shortcut,
        )
    bundle.write(trained, out)
    for source, figures in trained.metrics.items():
        click.echo(f"{source}: top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%}")
    click.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
