"""Where the windows of convolutions and pooling begin, and how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models.interchange.onnx.graph import OPEN, Node, Shape, Step, Values, misfit

EITHER = (64, 65)  # Examples of an open side: padding depends on whether it is even.

# A window on a side of n pixels: the padding before it, and the number of positions.
Fit = Callable[[int], tuple[int, int]]


def explicit(kernel: int, stride: int, before: int, after: int, *, ceil: bool = False) -> Fit:
    def fit(n: int) -> tuple[int, int]:
        span = n + before + after - kernel
        count = (-(-span // stride) if ceil else span // stride) + 1
        if ceil and (count - 1) * stride >= n + before:
            count -= 1  # No window may start in the padding at the end.
        return before, count

    return fit


def same(kernel: int, stride: int, *, lower: bool = False) -> Fit:
    def fit(n: int) -> tuple[int, int]:
        count = -(-n // stride)
        total = max((count - 1) * stride + kernel - n, 0)
        return (total - total // 2 if lower else total // 2), count

    return fit


def fits_of(values: Values, node: Node, kernel: int, stride: int) -> tuple[str, Step, list[Fit]]:
    """A window's input before separate padding, the step that gives its input, and its fits in
    height and width."""
    name, step = values.images(node)
    apart = (0, 0, 0, 0)
    if step.kind == "pad":
        if step.settings["reflects"]:
            raise misfit(step.label, "reflects images at their edges, which no ResNet does there")
        apart = step.settings["pads"]
        (name,) = step.sources
    automatic = node.attributes.get("auto_pad", b"NOTSET").decode()
    pads = list(node.attributes.get("pads", (0, 0, 0, 0)))
    if automatic.startswith("SAME_"):
        if any(apart):
            raise misfit(node.label, "is padded twice")
        return name, step, [same(kernel, stride, lower=automatic == "SAME_LOWER")] * 2
    if automatic == "VALID":
        pads = [0, 0, 0, 0]
    ceil = bool(node.attributes.get("ceil_mode", 0))
    top, left, bottom, right = (a + b for a, b in zip(pads, apart, strict=True))
    return (
        name,
        step,
        [
            explicit(kernel, stride, top, bottom, ceil=ceil),
            explicit(kernel, stride, left, right, ceil=ceil),
        ],
    )


def matching(
    fits: Sequence[Fit], sides: Sequence[int], known: Mapping[str, Fit]
) -> tuple[str, ...]:
    """The names of `known` with the same windows as `fits`."""

    def equal(other: Fit) -> bool:
        return all(
            fit(n) == other(n)
            for fit, side in zip(fits, sides, strict=True)
            for n in (EITHER if side == OPEN else (side,))
        )

    return tuple(name for name, other in known.items() if equal(other))


def outputs(fits: Sequence[Fit], sides: Sequence[int]) -> Shape:
    """Height and width of the result."""
    return tuple(n if n == OPEN else fit(n)[1] for fit, n in zip(fits, sides, strict=True))


def square(node: Node, values: Sequence[int] | None, default: int, what: str) -> int:
    """The one length of `values`, or `default` where there are none."""
    height, width = values or (default, default)
    if height != width:
        raise misfit(node.label, f"its {what} is {height}x{width}, not square")
    return int(height)
