"""Weights in 16 bits come back as they were written, and none is lost unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from models import bundle
from models.bundle import BundleError
from models.storage import MOST, kept, loaded, rounded, stored
from tests.support import tiny

CONVOLUTION = "stages.0.0.conv1.weight"


def dtypes(path: Path) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in safetensors.torch.load_file(path).items()}


def test_convolutions_and_linear_layers_are_halved_and_nothing_else(tmp_path: Path) -> None:
    path, made = tmp_path / "x.safetensors", tiny.made_bundle(storage="fp16")
    bundle.write(made, path)
    found = dtypes(path)
    assert found.keys() == made.tensors.keys()
    for name, value in made.tensors.items():
        expected = torch.float16 if value.ndim > 1 else value.dtype
        assert found[name] == expected, name
    assert found["stem.norm.num_batches_tracked"] == torch.int64


def test_in_memory_everything_is_float32_and_rounded_once() -> None:
    plain = tiny.made_bundle()
    halved = replace(plain, storage="fp16")
    for name, value in plain.tensors.items():
        found = halved.tensors[name]
        assert found.dtype == value.dtype
        if value.ndim > 1:
            assert torch.equal(found, value.half().float())
            assert not torch.equal(found, value)
        else:
            assert found is value
    again = replace(halved)
    assert all(again.tensors[name] is value for name, value in halved.tensors.items())


def test_what_is_read_equals_what_was_written_and_writing_it_again_changes_no_byte(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    made = tiny.made_bundle(storage="fp16")
    bundle.write(made, first)
    read = bundle.read(first)
    assert tiny.same_bits(read.tensors, made.tensors)
    assert replace(read, tensors={}) == replace(made, tensors={})
    bundle.write(read, second)
    assert first.read_bytes() == second.read_bytes()


def test_storage_is_part_of_what_a_bundle_is_and_the_way_back_is_to_the_rounded_weights(
    tmp_path: Path,
) -> None:
    plain, halved = tiny.made_bundle(), tiny.made_bundle(storage="fp16")
    assert plain.fingerprint() != halved.fingerprint()
    assert "storage" not in plain.description()
    back = replace(halved, storage="fp32")
    bundle.write(back, tmp_path / "x.safetensors")
    assert torch.float16 not in dtypes(tmp_path / "x.safetensors").values()
    assert tiny.same_bits(bundle.read(tmp_path / "x.safetensors").tensors, halved.tensors)
    with pytest.raises(BundleError, match=r"^storage must be fp32 or fp16, not 'int8'$"):
        tiny.made_bundle(storage="int8")


def too_large(weight: Tensor) -> None:
    weight[1, 0, 0, 0] = 65_520  # Rounds to infinity.


def tiny_channel(weight: Tensor) -> None:
    weight[2] *= 1e-6


def not_a_number(weight: Tensor) -> None:
    weight[0, 0, 0, 0] = torch.nan


def infinite(weight: Tensor) -> None:
    weight[0, 0, 0, 0] = torch.inf


@pytest.mark.parametrize("spoil", [too_large, tiny_channel, not_a_number, infinite])
def test_a_tensor_that_16_bits_would_change_stays_as_it_is(
    tmp_path: Path, spoil: Callable[[Tensor], None]
) -> None:
    made = tiny.made_bundle()
    spoil(made.tensors[CONVOLUTION])
    halved = replace(made, storage="fp16")
    assert kept(halved.tensors) == [CONVOLUTION]
    bundle.write(halved, tmp_path / "x.safetensors")
    assert dtypes(tmp_path / "x.safetensors")[CONVOLUTION] == torch.float32
    read = bundle.read(tmp_path / "x.safetensors")
    assert tiny.same_bits({"": read.tensors[CONVOLUTION]}, {"": made.tensors[CONVOLUTION]})
    bundle.write(read, tmp_path / "y.safetensors")
    both = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "xy"]
    assert both[0] == both[1]


def test_small_weights_beside_large_ones_and_channels_of_zeros_are_halved() -> None:
    weight = torch.tensor([[1.0, 1e-9], [0.0, 0.0], [65_504.0, 3.0]])
    halved = stored({"w": weight}, "fp16")["w"]
    assert halved.dtype == torch.float16
    found = rounded({"w": weight}, "fp16")["w"]
    largest = weight.abs().amax(1, keepdim=True)
    assert ((found - weight).abs() <= MOST * largest).all()


@pytest.mark.parametrize(
    ("exponent", "dtype"), [(-14, torch.float16), (-15, torch.float32)], ids=["11 bits", "10 bits"]
)
def test_a_channel_is_halved_where_float16_has_11_bits_for_it(
    exponent: int, dtype: torch.dtype
) -> None:
    weight = torch.full((1, 2), (1 + 2.0**-11 * 1.5) * 2.0**exponent)
    # Halfway between two numbers of 11 bits, it moves by half of their distance, or by less.
    weight[0, 1] = (1 + 2.0**-11) * 2.0**exponent
    assert stored({"w": weight}, "fp16")["w"].dtype == dtype


def test_fp32_gives_the_same_tensors() -> None:
    tensors = {"w": torch.ones(2, 2), "half": torch.ones(2, 2, dtype=torch.float16)}
    for as_stored in (stored, rounded, loaded):
        found = as_stored(tensors, "fp32")
        assert found.keys() == tensors.keys()
        assert all(found[name] is value for name, value in tensors.items())


@pytest.mark.parametrize(
    ("name", "storage"),
    [("stem.norm.weight", "fp16"), (CONVOLUTION, "fp32")],
    ids=["a norm", "storage fp32"],
)
def test_16_bits_where_they_do_not_belong_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, storage: str
) -> None:
    def wrong(tensors: dict[str, Tensor], storage: str) -> dict[str, Tensor]:
        return {**tensors, name: tensors[name].half()}

    path = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "stored", wrong)
        bundle.write(tiny.made_bundle(storage=storage), path)
    with pytest.raises(BundleError, match=f"{name} must be torch.float32, not torch.float16$"):
        bundle.read(path)


def test_a_damaged_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bundle.write(tiny.made_bundle(storage="fp16"), path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="checksum"):
        bundle.read(path)
