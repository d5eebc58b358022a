"""The options that say how images are prepared for a network: fields of its input specification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from service.cli import completers
from service.cli.options import Lengths, PerChannel, Whole

if TYPE_CHECKING:
    from models.preprocess import InputSpec
    from models.preprocess import PerChannel as Values

INPUT = ("channels", "mean", "std", "size", "resize", "crop", "interpolation", "fill")
AUTO = "auto"


class Statistics(PerChannel):
    """One number for each channel, or "auto": measured on the training images."""

    name = "r,g,b|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return AUTO if value == AUTO else super().convert(value, param, ctx)


def preparation(numbers: PerChannel | None = None) -> Callable[[Any], Any]:
    """Adds an option for each of INPUT; `numbers`: the type of the mean and standard deviation."""
    numbers = numbers or PerChannel()
    auto = ", or auto: those of the training images" if isinstance(numbers, Statistics) else ""
    options = (
        click.option(
            "--channels",
            metavar="ORDER",
            shell_complete=completers.channels,
            help="Order of the network's input channels: rgb, bgr, grey or rgba.",
        ),
        click.option(
            "--mean",
            type=numbers,
            help=f"Mean of each channel, in the order of --channels, of values from 0 to 1{auto}.",
        ),
        click.option("--std", type=numbers, help="Standard deviation of each channel, likewise."),
        click.option("--size", type=Lengths(), help="Sides in pixels of the network's input."),
        click.option(
            "--resize",
            type=Lengths(),
            help="Sides in pixels that images are resized to before --crop.",
        ),
        click.option(
            "--crop",
            metavar="CROP",
            shell_complete=completers.crop,
            help="center, center_floor, center_truncate, before_resize, squash or letterbox.",
        ),
        click.option(
            "--interpolation",
            metavar="NAME",
            shell_complete=completers.interpolation,
            help="nearest, bilinear, bicubic or lanczos.",
        ),
        click.option(
            "--fill", type=Whole(), help="With --crop letterbox: colour beside the image."
        ),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def changed(spec: InputSpec, given: dict[str, Any]) -> InputSpec:
    """`spec` with the values that are given; with another size, images are resized in the same
    proportion to it as before, and with other channels mean and standard deviation fit them.

    Raises:
        ValueError: a value is invalid; the message names the option's field.
    """
    from models.preprocess import CHANNELS

    changes = {name: value for name, value in given.items() if value not in (None, AUTO)}
    channels = changes.get("channels", spec.channels)
    if channels in CHANNELS and channels != spec.channels:
        of = {name: _of_channels(getattr(spec, name), spec, channels) for name in ("mean", "std")}
        changes = of | changes
    if "size" in changes and "resize" not in changes:
        changes["resize"] = _in_proportion(changes["size"], spec)
    if changes.get("crop", "letterbox") != "letterbox" and spec.fill:
        changes = {"fill": ()} | changes
    return replace(spec, **changes)


def _of_channels(values: Values, spec: InputSpec, channels: str) -> Values:
    """A grey image has the mean of the colours'; transparency runs from -1 to 1."""
    colours = values[2::-1] if spec.channels == "bgr" else values[:3]
    if channels == "grey":
        return (fmean(colours),)
    colours = colours * 3 if len(colours) == 1 else colours
    return {"rgb": colours, "bgr": colours[::-1], "rgba": (*colours, 0.5)}[channels]


def _in_proportion(size: int | tuple[int, int], spec: InputSpec) -> int | tuple[int, int]:
    shares = spec.box[0] / spec.height, spec.box[1] / spec.width
    if isinstance(size, int):
        sides = tuple(round(size * share) for share in shares)
        return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])
    return round(size[0] * shares[0]), round(size[1] * shares[1])
