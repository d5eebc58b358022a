"""ResNets in Flax: one with the names and the padding of its ImageNet example, and one as
tutorials write them, with names that Flax makes up and 3x3 stems.
"""

from __future__ import annotations

import functools
import os
from functools import partial
from typing import Any

# Each network computes once: what compiling it better takes is never won back.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.support.random_weights import randomised

STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
conv = partial(nn.Conv, use_bias=False)
norm = partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


class ResNetBlock(nn.Module):
    filters: int
    strides: int
    bare_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(norm()(conv(self.filters, (3, 3), self.strides)(x)))
        y = norm()(conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            if self.bare_shortcut:
                x = nn.Conv(self.filters, (1, 1), self.strides)(x)
            else:
                x = conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
                x = norm(name="norm_proj")(x)
        return nn.relu(x + y)


class BottleneckResNetBlock(nn.Module):
    filters: int
    strides: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(norm()(conv(self.filters, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.filters, (3, 3), self.strides)(y)))
        y = norm()(conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = norm(name="norm_proj")(x)
        return nn.relu(x + y)


class Example(nn.Module):
    """The ImageNet example's form; its stem may be padded SAME, which the example's is not."""

    block: Any
    stages: tuple[int, ...]
    filters: int = 64
    classes: int = 1000
    same_stem: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        padding: Any = "SAME" if self.same_stem else [(3, 3), (3, 3)]
        x = conv(self.filters, (7, 7), 2, padding=padding, name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.stages):
            for index in range(count):
                strides = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.filters * 2**stage, strides)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class Tutorial(nn.Module):
    """A network for small images."""

    block: Any
    stages: tuple[int, ...] = (2, 1, 2)
    filters: int = 8
    classes: int = 10

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(norm()(conv(self.filters, (3, 3))(x)))
        for stage, count in enumerate(self.stages):
            for index in range(count):
                strides = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.filters * 2**stage, strides)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def example(depth: int, **changes: Any) -> Example:
    block = ResNetBlock if depth < 50 else BottleneckResNetBlock
    return Example(**{"block": block, "stages": STAGES[depth], **changes})


@functools.cache
def compiled(network: nn.Module) -> Any:
    """`network.apply`, compiled once for all equal networks."""
    return jax.jit(network.apply)


def variables(network: nn.Module, seed: int = 0) -> Any:
    """`params` and `batch_stats`, random in every value."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    random = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(randomised(path[-1].key, leaf.shape, random)), shapes
    )


class NnxBlock(nnx.Module):
    """A block as NNX has it: the shortcut is a module of its own."""

    def __init__(self, inputs: int, filters: int, strides: int, rngs: nnx.Rngs) -> None:
        def unit(inputs: int, kernel: int, strides: int) -> Any:
            size = (kernel, kernel)
            return nnx.Conv(inputs, filters, size, strides, use_bias=False, rngs=rngs)

        self.conv1, self.bn1 = unit(inputs, 3, strides), nnx.BatchNorm(filters, rngs=rngs)
        self.conv2, self.bn2 = unit(filters, 3, 1), nnx.BatchNorm(filters, rngs=rngs)
        self.projects = inputs != filters
        if self.projects:
            norm = nnx.BatchNorm(filters, rngs=rngs)
            self.shortcut = nnx.Sequential(unit(inputs, 1, strides), norm)

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + (self.shortcut(x) if self.projects else x))


class NnxNetwork(nnx.Module):
    """A network for small images in NNX; `nested`: its stem and its head are modules too."""

    def __init__(self, rngs: nnx.Rngs, *, nested: bool = False) -> None:
        conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        norm = nnx.BatchNorm(8, rngs=rngs)
        if nested:
            self.stem = nnx.Sequential(conv, norm)
        else:
            self.conv1, self.bn1 = conv, norm
        first, second = NnxBlock(8, 8, 1, rngs), NnxBlock(8, 8, 1, rngs)
        self.layer1 = nnx.Sequential(first, second)
        self.layer2 = nnx.Sequential(NnxBlock(8, 16, 2, rngs))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        head = nnx.Linear(16, 10, rngs=rngs)
        self.fc = nnx.Sequential(self.dropout, head) if nested else head
        self.nested = nested

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x) if self.nested else self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((1, 2)))


def nnx_network(*, nested: bool = False, seed: int = 0) -> NnxNetwork:
    """In evaluation mode, random in every value."""
    network = NnxNetwork(nnx.Rngs(0), nested=nested)
    random = np.random.default_rng(seed)
    state = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(randomised(leaf_name(path), leaf.shape, random)), state
    )
    nnx.update(network, filled)
    network.eval()
    return network


def leaf_name(path: Any) -> str:
    """The last name in a path of NNX, which may end in that of the variable's value."""
    names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
    return next(name for name in reversed(names) if name not in ("value", "raw_value"))
