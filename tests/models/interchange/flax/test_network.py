"""Whichever part of Flax wrote a network, and however it was saved, it is found in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint
import pytest
import safetensors.numpy
import torch
from flax import linen as nn
from flax import nnx, serialization, traverse_util

from models.bundle import Bundle, BundleError
from models.interchange import convert
from tests.support import flax_reference as reference
from tests.support.flax_reference import ResNetBlock, Tutorial, norm, variables
from tests.support.random_weights import far
from tests.support.said import said

SMALL = Tutorial(ResNetBlock)
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def converted(path: Path, **options: Any) -> Bundle:
    return convert.convert("flax", path, said(**(PLAIN | options)))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(path, **options)
    return str(caught.value).removeprefix(f"{path}: ")


def difference(bundle: Bundle, compute: Callable[[Any], Any]) -> float:
    """The largest of two images' logits, in parts of what rounding explains."""
    shape = (2, 32, 32, bundle.input.shape[2])
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with torch.inference_mode():
        ours = bundle.network()(torch.from_numpy(images).permute(0, 3, 1, 2))
    return far(ours.numpy(), np.asarray(compute(images)), bundle.network())


def linen(network: nn.Module, weights: Any) -> Callable[[Any], Any]:
    return lambda images: reference.compiled(network)(weights, images)


def msgpack(path: Path, tree: Any) -> Path:
    path.write_bytes(serialization.to_bytes(tree))
    return path


def orbax_folder(path: Path, tree: Any) -> Path:
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def flat(tree: Any, separator: str) -> dict[str, Any]:
    arrays = traverse_util.flatten_dict(tree, sep=separator)
    return {name: np.asarray(value) for name, value in arrays.items()}


def npz(path: Path, arrays: dict[str, Any]) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def named(tree: Any) -> Any:
    """A pure dictionary with all names as strings, without random generators."""
    if not isinstance(tree, dict):
        return np.asarray(tree)
    return {str(name): named(value) for name, value in tree.items() if name != "rngs"}


def variables_of(tree: Any) -> Any:
    """Each array as the `value` of a variable, as states were saved."""
    if not isinstance(tree, dict):
        return {"value": tree}
    return {name: variables_of(value) for name, value in tree.items()}


def parted(network: nnx.Module) -> Any:
    _, params, stats, _ = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
    pure = (named(nnx.to_pure_dict(state)) for state in (params, stats))
    return dict(zip(("params", "batch_stats"), pure, strict=True))


FORMS: dict[str, Callable[[Path, nnx.Module], Path]] = {
    "state in Orbax": lambda path, network: orbax_folder(path, nnx.state(network)),
    "pure dictionary in Orbax": lambda path, network: orbax_folder(
        path, nnx.to_pure_dict(nnx.state(network))
    ),
    "parameters and statistics in Orbax": lambda path, network: orbax_folder(path, parted(network)),
    "pure dictionary in msgpack": lambda path, network: msgpack(
        path, named(nnx.to_pure_dict(nnx.state(network)))
    ),
    "values in msgpack": lambda path, network: msgpack(
        path, {"model": variables_of(named(nnx.to_pure_dict(nnx.state(network)))), "step": 3}
    ),
    "parameters and statistics in msgpack": lambda path, network: msgpack(path, parted(network)),
    "safetensors": lambda path, network: safetensors_file(
        path, flat(named(nnx.to_pure_dict(nnx.state(network))), ".")
    ),
}


def safetensors_file(path: Path, arrays: dict[str, Any]) -> Path:
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_nnx_is_read(tmp_path: Path, form: str, nested: bool) -> None:
    network = reference.nnx_network(nested=nested)
    bundle = converted(FORMS[form](tmp_path / "weights", network))
    assert difference(bundle, nnx.jit(network)) <= 1
    assert bundle.architecture.blocks == (2, 1)


def test_of_two_networks_one_is_named(tmp_path: Path) -> None:
    first, second = (reference.nnx_network(nested=True, seed=seed) for seed in (0, 1))
    tree = {
        name: named(nnx.to_pure_dict(nnx.state(network)))
        for name, network in (("model", first), ("ema", second))
    }
    path = msgpack(tmp_path / "weights", {"state": tree})
    assert refusal(path) == "holds several networks, model, ema: give --key and one of them"
    assert difference(converted(path, key="state/ema"), nnx.jit(second)) <= 1
    assert "has no entry 'state/other': 'other' is not among " in refusal(path, key="state/other")


@pytest.mark.parametrize(
    "save",
    [
        lambda path, tree: npz(path, flat(tree, "/")),
        lambda path, tree: npz(path, flat(tree, ".")),
        lambda path, tree: safetensors_file(path, flat(tree, "/")),
        lambda path, tree: safetensors_file(path, flat(tree, ".")),
    ],
    ids=["npz /", "npz .", "safetensors /", "safetensors ."],
)
def test_flat_files_are_trees_by_their_names(tmp_path: Path, save: Any) -> None:
    weights = variables(SMALL)
    assert difference(converted(save(tmp_path / "w", weights)), linen(SMALL, weights)) <= 1


@pytest.mark.parametrize("wrap", [lambda params: params, lambda params: {"params": params}])
def test_params_without_statistics_are_refused_with_the_way(tmp_path: Path, wrap: Any) -> None:
    tree = wrap(variables(SMALL)["params"])
    for path in (msgpack(tmp_path / "a", tree), orbax_folder(tmp_path / "b", tree)):
        assert refusal(path) == (
            "holds params without batch_stats, the running means and variances of BatchNorm; save "
            "both: flax.serialization.to_bytes({'params': state.params, 'batch_stats': "
            "state.batch_stats}). (A network of GroupNorm or LayerNorm has none, and is not read)"
        )


def test_a_folder_with_one_legacy_checkpoint_is_read(tmp_path: Path) -> None:
    weights = variables(SMALL)
    folder = tmp_path / "run"
    folder.mkdir()
    msgpack(folder / "checkpoint_3", weights)
    bundle = converted(folder)
    assert difference(bundle, linen(SMALL, weights)) <= 1
    assert bundle.provenance["sha256"] == converted(folder / "checkpoint_3").provenance["sha256"]
    msgpack(folder / "checkpoint_20", weights)
    assert refusal(folder) == (
        "the folder holds several checkpoints, name one: checkpoint_3, checkpoint_20"
    )


class Headed(nn.Module):  # type: ignore[misc]
    """`widths`: of the dense layers, of which there may be none."""

    widths: tuple[int, ...]

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = ResNetBlock(8, 1)(x)
        x = ResNetBlock(16, 2)(x).mean((1, 2))
        for index, width in enumerate(self.widths):
            x = nn.Dense(width)(nn.relu(x) if index else x)
        return x


@pytest.mark.parametrize("widths", [(10,), (24, 10), (24, 12, 10), (16, 16, 10)])
def test_dense_layers_are_a_head_with_relus_between(
    tmp_path: Path, widths: tuple[int, ...]
) -> None:
    network = Headed(widths)
    weights = variables(network)
    bundle = converted(msgpack(tmp_path / "w", weights))
    assert difference(bundle, linen(network, weights)) <= 1
    assert bundle.architecture.head == widths[:-1]
    if widths[1:]:
        assert bundle.provenance["assumed"]["head"] == list(widths[:-1])


def test_without_a_head_there_are_features_and_a_note(tmp_path: Path) -> None:
    network = Headed(())
    weights = variables(network)
    bundle = converted(msgpack(tmp_path / "w", weights))
    assert difference(bundle, linen(network, weights)) <= 1
    assert bundle.architecture.num_classes == 0
    assert bundle.provenance["notes"] == ["it has no head: its answers are features"]


def test_one_logit_is_the_second_of_two_classes(tmp_path: Path) -> None:
    network = Headed((1,))
    weights = variables(network)
    bundle = converted(msgpack(tmp_path / "w", weights))
    assert bundle.architecture.num_classes == 2

    def two(images: Any) -> Any:
        one = np.asarray(linen(network, weights)(images))
        return np.concatenate([np.zeros_like(one), one], 1)

    assert difference(bundle, two) <= 1


@pytest.mark.parametrize(("channels", "name"), [(1, "grey"), (4, "rgba")])
def test_one_and_four_channels_are_read(tmp_path: Path, channels: int, name: str) -> None:
    network = Headed((10,))
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    random = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape).astype("f4"), shapes)
    path = msgpack(tmp_path / "w", weights)
    values = (0.5,) * channels
    bundle = converted(path, mean=values, std=values)
    assert bundle.input.channels == name
    assert difference(bundle, linen(network, weights)) <= 1
    with pytest.raises(BundleError, match="does not say how images were normalised"):
        convert.convert("flax", path, said())


def test_dense_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = variables(Headed((24, 10)))
    weights["params"]["Dense_1"]["kernel"] = np.ones((20, 10), np.float32)
    message = refusal(msgpack(tmp_path / "w", weights))
    assert message == "no Dense layer takes 24 features: Dense_1 takes 20"


def test_a_stem_of_7x7_without_the_examples_names_says_how_it_is_taken_to_pad(
    tmp_path: Path,
) -> None:
    network = reference.Example(reference.BottleneckResNetBlock, (1, 1), filters=8)
    weights = variables(network)
    for part in weights.values():
        for name in ("conv_init", "bn_init"):
            if name in part:
                part[name.replace("_init", "_first")] = part.pop(name)
    path = msgpack(tmp_path / "w", weights)
    assert "give --set stem_padding=same" in converted(path).provenance["notes"][0]
    assert converted(path).provenance["assumed"]["stem_padding"] == "symmetric"
    known = converted(path, numerics={"stem_padding": "same"})
    assert "stem_padding" not in known.provenance["assumed"]
    assert "notes" not in known.provenance
