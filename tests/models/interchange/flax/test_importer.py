"""Flax's ResNets give what Flax gives, from msgpack files and Orbax folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import torch
from flax import linen as nn
from flax import serialization
from flax.core import frozen_dict
from flax.training import train_state
from torch import Tensor

from models import labels
from models.bundle import Bundle, BundleError
from models.extras import install
from models.interchange import convert, extras
from models.interchange.flax import pytree
from models.preprocess import IMAGENET
from models.variants import variant
from tests.support import flax_reference as reference
from tests.support.flax_reference import (
    BottleneckResNetBlock,
    Example,
    ResNetBlock,
    Tutorial,
    example,
    variables,
)
from tests.support.random_weights import far
from tests.support.said import said

SIZES = [(64, 64), (65, 49), (32, 32)]
SMALL = Tutorial(ResNetBlock)
NARROW = Example(BottleneckResNetBlock, (1, 2, 1, 1), filters=8)
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def converted(path: Path, **options: Any) -> Bundle:
    return convert.convert("flax", path, said(**options))


def saved(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "weights.msgpack"
    path.write_bytes(serialization.to_bytes(tree))
    return path


def orbax_saved(tmp_path: Path, tree: Any, **options: Any) -> Path:
    path = tmp_path / "weights"
    handler = orbax.checkpoint.PyTreeCheckpointHandler(**options)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, tree)
    return path


def difference(
    bundle: Bundle, network: nn.Module, weights: Any, size: tuple[int, int] = (32, 32)
) -> float:
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    theirs = np.asarray(reference.compiled(network)(weights, images))
    with torch.inference_mode():
        ours = bundle.network()(torch.from_numpy(images).permute(0, 3, 1, 2))
    return far(ours.numpy(), theirs, bundle.network())


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    "depth", [18, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (34, 50))]
)
def test_the_imagenet_examples_networks_give_equal_logits(tmp_path: Path, depth: int) -> None:
    network = example(depth)
    weights = variables(network)
    bundle = converted(saved(tmp_path, weights), variant=f"resnet{depth}")
    assert difference(bundle, network, weights, (33, 32)) <= 1
    assert bundle.input == replace(IMAGENET, crop="before_resize", interpolation="bicubic")
    assert bundle.labels == labels.read("imagenet1k")
    assert bundle.provenance["layout"] == "Flax ImageNet example"


@pytest.mark.parametrize("size", SIZES)
def test_they_pad_images_of_any_size_alike(tmp_path: Path, size: tuple[int, int]) -> None:
    network = example(18, filters=4)
    weights = variables(network)
    bundle = converted(saved(tmp_path, weights), mean=IMAGENET.mean, std=IMAGENET.std)
    assert difference(bundle, network, weights, size) <= 1


@pytest.mark.parametrize("depth", [101, 152, pytest.param(200, marks=pytest.mark.slow)])
def test_deep_ones_are_told_apart(tmp_path: Path, depth: int) -> None:
    """All of their blocks, each of few channels; the deepest computes, too."""
    network = example(depth, filters=4, classes=10)
    weights = variables(network)
    bundle = converted(saved(tmp_path, weights), **PLAIN)
    assert bundle.architecture.blocks == variant(f"resnet{depth}").architecture.blocks
    if depth == 200:
        # Its operations are few, and each is compiled once.
        with jax.disable_jit():
            assert difference(bundle, network, weights, (33, 32)) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bare", [False, True], ids=["normalised shortcut", "bare shortcut"])
def test_a_tutorials_network_gives_equal_logits(
    tmp_path: Path, bare: bool, size: tuple[int, int]
) -> None:
    network = Tutorial(partial(ResNetBlock, bare_shortcut=bare))
    weights = variables(network)
    bundle = converted(saved(tmp_path, weights), **PLAIN)
    assert difference(bundle, network, weights, size) <= 1
    assert bundle.architecture.shortcut_norm is not bare
    assert bundle.provenance["layout"] == "Flax modules"
    assert bundle.input.size == 32


def test_a_bottleneck_network_for_small_images_gives_equal_logits(tmp_path: Path) -> None:
    network = Tutorial(BottleneckResNetBlock)
    weights = variables(network)
    bundle = converted(saved(tmp_path, weights), **PLAIN)
    assert difference(bundle, network, weights, (31, 32)) <= 1


def test_a_stem_padded_as_flax_pads_by_default_is_said_to_be(tmp_path: Path) -> None:
    network = replace(NARROW, same_stem=True)
    weights = variables(network)
    path = saved(tmp_path, weights)
    said = converted(path, numerics={"stem_padding": "same"})
    assert difference(said, network, weights, (64, 64)) <= 1
    assert difference(converted(path), network, weights, (64, 64)) > 1


def test_symmetric_padding_would_give_other_logits(tmp_path: Path) -> None:
    weights = variables(NARROW)
    path = saved(tmp_path, weights)
    for field in ("padding", "pool_padding"):
        bundle = converted(path, numerics={field: "symmetric"})
        assert difference(bundle, NARROW, weights, (64, 64)) > 1


class TrainState(train_state.TrainState):
    batch_stats: Any


def training_state(weights: Any) -> Any:
    create: Any = TrainState.create
    return create(apply_fn=SMALL.apply, tx=optax.sgd(0.1, momentum=0.9), **weights)


FORMS: dict[str, Callable[[Any], Any]] = {
    "frozen": frozen_dict.freeze,
    "training state": training_state,
    "wrapped": lambda weights: {"model": training_state(weights), "config": {"epochs": 3}},
    "variables in a training state": lambda weights: {"step": 3, "params": weights},
    "in a module": lambda weights: {key: {"ResNet_0": value} for key, value in weights.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["msgpack", "orbax"])
def test_every_usual_form_is_read(tmp_path: Path, form: str, kind: str) -> None:
    weights = variables(SMALL)
    tree = FORMS[form](weights)
    if kind == "orbax":
        path = orbax_saved(tmp_path, serialization.to_state_dict(tree))
    else:
        path = saved(tmp_path, tree)
    assert difference(converted(path, **PLAIN), SMALL, weights) <= 1


def test_large_arrays_in_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = variables(SMALL)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    path = saved(tmp_path, weights)
    assert path.read_bytes().count(pytree.CHUNKED.encode()) > 3
    assert difference(converted(path, **PLAIN), SMALL, weights) <= 1


@pytest.mark.parametrize("kind", ["msgpack", "orbax"])
def test_bfloat16_becomes_the_same_float32(tmp_path: Path, kind: str) -> None:
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables(SMALL))
    save = saved if kind == "msgpack" else orbax_saved
    bundle = converted(save(tmp_path, weights), **PLAIN)
    kernel: Tensor = bundle.tensors["head.weight"]
    assert kernel.dtype == torch.float32
    expected = np.asarray(weights["params"]["Dense_0"]["kernel"].astype(jnp.float32))
    assert np.array_equal(kernel.numpy().T, expected)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    assert difference(bundle, SMALL, exact) <= 1


@pytest.mark.parametrize("depth", [18, 50])
def test_orbax_folders_give_equal_logits(tmp_path: Path, depth: int) -> None:
    network = example(depth, filters=8)
    weights = variables(network)
    bundle = converted(orbax_saved(tmp_path, weights), mean=IMAGENET.mean, std=IMAGENET.std)
    assert difference(bundle, network, weights, (65, 64)) <= 1


@pytest.mark.parametrize(
    "options", [{"use_ocdbt": False}, {"use_zarr3": True}], ids=["plain", "zarr3"]
)
def test_orbaxs_other_layouts_are_read(tmp_path: Path, options: dict[str, bool]) -> None:
    weights = variables(SMALL)
    bundle = converted(orbax_saved(tmp_path, weights, **options), **PLAIN)
    assert difference(bundle, SMALL, weights) <= 1


def test_a_managers_folder_is_read_where_it_has_one_step(tmp_path: Path) -> None:
    weights = variables(SMALL)
    with orbax.checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=orbax.checkpoint.args.StandardSave(weights))
        manager.wait_until_finished()
        one = converted(tmp_path / "run", **PLAIN)
        assert difference(one, SMALL, weights) <= 1
        manager.save(4, args=orbax.checkpoint.args.StandardSave(weights))
    message = refusal(lambda: converted(tmp_path / "run", **PLAIN))
    assert message.endswith("holds several checkpoints, name one: 3/default, 4/default")
    assert converted(tmp_path / "run" / "4", **PLAIN).tensors.keys() == one.tensors.keys()


def test_a_folders_digest_depends_on_every_file(tmp_path: Path) -> None:
    path = orbax_saved(tmp_path, variables(SMALL))
    first = converted(path, **PLAIN).provenance["sha256"]
    assert converted(path, **PLAIN).provenance["sha256"] == first
    (path / "note").write_text("new")
    assert converted(path, **PLAIN).provenance["sha256"] != first


def test_what_the_file_does_not_say_must_be_given(tmp_path: Path) -> None:
    path = saved(tmp_path, variables(SMALL))
    assert "give --mean r,g,b and --std r,g,b" in refusal(lambda: converted(path))


def without(tree: Any, *names: str) -> Any:
    """`tree` without every entry called one of `names`."""
    if not isinstance(tree, dict):
        return tree
    return {key: without(value, *names) for key, value in tree.items() if key not in names}


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], Any]:
    def apply(weights: Any) -> Any:
        change(weights["params"])
        return weights

    return apply


def conv_of(*shape: int) -> Any:
    return {"kernel": np.zeros(shape, np.float32)}


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no stem": (
        lambda weights: {k: without_top(v, "Conv_0") for k, v in weights.items()},
        "has 0 modules that are a convolution outside its blocks; a ResNet has one, in a stem",
    ),
    "no running statistics": (
        lambda weights: {
            "params": weights["params"],
            "batch_stats": without(weights["batch_stats"], "BatchNorm_1"),
        },
        "ResNetBlock_0/BatchNorm_1 has no running statistics: GroupNorm or LayerNorm, not "
        "BatchNorm",
    ),
    "squeeze and excitation": (
        changed(lambda p: p["ResNetBlock_0"].update(SE_0={"Dense_0": {"kernel": np.ones((8, 2))}})),
        "ResNetBlock_0 holds SE_0: not a plain residual block (squeeze-and-excitation?)",
    ),
    "grouped": (
        changed(lambda p: p["ResNetBlock_1"].update(Conv_1=conv_of(3, 3, 2, 8))),
        "ResNetBlock_1/Conv_1 sees 2 of 8 channels: grouped convolutions, or blocks out of order",
    ),
    "pre-activation": (
        changed(lambda p: p["ResNetBlock_1"].update(Conv_0=conv_of(3, 3, 8, 16))),
        "ResNetBlock_1/BatchNorm_0 does not follow Conv_0: pre-activation, or not a ResNet",
    ),
    "another kernel": (
        changed(lambda p: p["ResNetBlock_1"].update(Conv_0=conv_of(5, 5, 8, 8))),
        "ResNetBlock_1 has convolutions of 5x5, 3x3: not a residual block's",
    ),
    "two stems": (
        changed(lambda p: p.update(Conv_1=conv_of(3, 3, 8, 8))),
        "has 2 modules that are a convolution outside its blocks: Conv_0, Conv_1; a ResNet has "
        "one, in a stem",
    ),
    "weight standardisation": (
        changed(lambda p: p["Conv_0"].update(gain=np.ones(8, np.float32))),
        "Conv_0 holds gain: not a module of a ResNet",
    ),
    "an unshared convolution": (
        changed(lambda p: p.update(Conv_0={"kernel": np.zeros((8, 8, 1, 27, 8), np.float32)})),
        "Conv_0 has a kernel of 5 dimensions",
    ),
    "a text for an array": (
        changed(lambda p: p["Conv_0"].update(bias="none")),
        "Conv_0 has a bias that is not a list of numbers",
    ),
    "a number for an array": (
        changed(lambda p: p["BatchNorm_0"].update(scale=np.float32(1))),
        "BatchNorm_0 has a scale that is not a list of numbers",
    ),
    "projecting without widening": (
        changed(lambda p: p["ResNetBlock_1"].update(conv_proj=conv_of(1, 1, 8, 8))),
        "ResNetBlock_1 projects without widening: where it strides is unknown",
    ),
    "blocks of two names": (
        lambda weights: {
            key: {k.replace("ResNetBlock_1", "Wide_1"): v for k, v in value.items()}
            for key, value in weights.items()
        },
        "blocks called ResNetBlock_#, Wide_#: their order is unknown",
    ),
}


def without_top(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != name}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_resnet_is_refused_by_name(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    path = saved(tmp_path, change(jax.tree.map(np.asarray, variables(SMALL))))
    assert refusal(lambda: converted(path, **PLAIN)) == f"{path}: {message}"


def test_groupnorm_networks_are_refused(tmp_path: Path) -> None:
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
            return nn.Dense(10)(x.mean((1, 2)))

    path = saved(tmp_path, variables(Grouped()))
    assert "GroupNorm or LayerNorm" in refusal(lambda: converted(path, **PLAIN))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"hello", b"\x80", b"PK\x03\x04", b"\xc1", b"\x81\xa1a\xc7\x04\x01abcd"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.msgpack"
    path.write_bytes(content)
    assert refusal(lambda: converted(path)).startswith(f"{path}: ")


def test_absent_files_and_other_folders_are_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refusal(lambda: converted(absent)) == f"{absent}: No such file or directory"
    assert refusal(lambda: converted(tmp_path)) == (
        f"{tmp_path}: not an Orbax checkpoint: the folder holds none"
    )


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, variables(SMALL))
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        assert refusal(lambda: converted(path, **PLAIN)).startswith(f"{path}: ")


def test_a_damaged_orbax_folder_is_refused(tmp_path: Path) -> None:
    path = orbax_saved(tmp_path, variables(SMALL))
    for file in (path / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "not a Flax checkpoint" in refusal(lambda: converted(path, **PLAIN))


def test_a_missing_library_is_named_with_what_installs_it() -> None:
    assert refusal(lambda: extras.load("no_such_library")) == (
        f"reading it needs no_such_library: {install('interchange')}"
    )


def test_the_reference_has_the_examples_names() -> None:
    tree = variables(reference.example(18, filters=8))
    assert sorted(tree["params"]) == sorted(
        ["conv_init", "bn_init", "Dense_0", *(f"ResNetBlock_{index}" for index in range(8))]
    )
    assert sorted(tree["params"]["ResNetBlock_2"]) == [
        "BatchNorm_0",
        "BatchNorm_1",
        "Conv_0",
        "Conv_1",
        "conv_proj",
        "norm_proj",
    ]
