"""A bundle is written whole or not at all, and comes back bit by bit."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import safetensors.torch
import torch

import models
from models import builtin, bundle, bundling, labels, variants
from models.bundle import Bundle, BundleError, WeightsMismatch
from models.naming import check_name, name_from
from models.resnet import ResNet, build
from models.summary import count_parameters
from tests.support import rounding, tiny


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet20", {"shortcut": "A", "num_classes": 7}),
        ("preact_wide_resnet16_2", {"dropout": 0.3, "shortcut_padding": "end"}),
        ("preact_resnet164", {"stride_at": "1x1", "blocks": [1, 1, 1], "shortcut": "C"}),
        ("resnet18", {"width": 0.5, "planes": [4, 8, 16, 32], "shortcut": "conv"}),
    ],
)
def test_every_field_and_bit_comes_back(
    tmp_path: Path, name: str, overrides: dict[str, Any]
) -> None:
    network = tiny.randomised(build(name, **overrides)).eval()
    classes = network.architecture.num_classes
    written = bundling.from_network(network, **tiny.described(labels=labels.default(classes)))
    bundle.write(written, tmp_path / "x.safetensors")
    read = bundle.read(tmp_path / "x.safetensors")
    assert tiny.same_bits(read.tensors, network.state_dict())
    assert read.architecture == network.architecture
    assert replace(read, tensors={}) == replace(written, tensors={})

    again = read.network()
    assert not again.training
    assert count_parameters(again) == count_parameters(network)
    image = torch.randn(1, 3, 32, 32)
    rounding.assert_near(again(image), network(image), network)


def test_bundles_are_equal_if_all_fields_and_tensors_are() -> None:
    one = tiny.made_bundle()
    assert one == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    assert one != replace(one, name="other")
    assert one != replace(one, tensors={**one.tensors, "head.bias": one.tensors["head.bias"] + 1})
    assert one != "one"


def test_what_a_bundle_shows_of_itself_has_no_weights() -> None:
    shown = repr(tiny.made_bundle())
    assert "name='tiny-cifar10'" in shown
    assert "tensor" not in shown


def test_what_is_no_bundle_is_not_written(tmp_path: Path) -> None:
    network: Any = tiny.network()
    with pytest.raises(BundleError, match=r"\Awrite takes a Bundle, not a ResNet; see"):
        bundle.write(network, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_temperature_and_a_card_come_back_and_are_part_of_what_a_bundle_is(
    tmp_path: Path,
) -> None:
    plain = tiny.made_bundle()
    made = tiny.made_bundle(temperature=1.25, card="# Tiny\n\n| für | wen |\n|---|---|\n")
    bundle.write(made, tmp_path / "x.safetensors")
    read = bundle.read(tmp_path / "x.safetensors")
    assert (read.temperature, read.card) == (1.25, made.card)
    prints = {plain.fingerprint(), made.fingerprint()}
    prints |= {
        replace(plain, temperature=1.25).fingerprint(),
        replace(plain, card="x").fingerprint(),
    }
    assert len(prints) == 4
    whole = tiny.made_bundle(temperature=2)
    assert isinstance(whole.temperature, float)


def test_a_bundle_without_temperature_and_card_is_as_it_was_before_there_were_any(
    bundle_file: Path,
) -> None:
    read = bundle.read(bundle_file)
    assert (read.temperature, read.card) == (1.0, "")
    assert set(read.description()) == {
        "name",
        "variant",
        "architecture",
        "input",
        "labels",
        "provenance",
        "metrics",
        "calibration",
    }


def test_the_classifier_is_that_of_the_network_the_input_and_the_temperature() -> None:
    made = tiny.made_bundle(temperature=3.0)
    pixels = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).view(2, 8, 8, 3)
    classifier = made.classifier()
    assert not classifier.training
    logits = made.network()(classifier.normalise(pixels))
    expected = (logits / 3.0).softmax(1)
    rounding.assert_probabilities_near(classifier(pixels), expected, made.tensors)


@pytest.mark.parametrize("temperature", [0, -1.0, 1e-7, 1e7, float("nan"), float("inf"), True, "1"])
def test_temperatures_that_nothing_can_be_divided_by_are_refused(temperature: Any) -> None:
    with pytest.raises(
        BundleError, match="temperature must be a number from 1e-06 to 1e\\+06, not"
    ):
        tiny.made_bundle(temperature=temperature)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (None, "card must be text, not None"),
        ("ü" * 10_001, "at most 20000 bytes, not 20002"),
        ("half \ud800", r"^card must be whole Unicode text: it holds half a character$"),
        ("bell \a", r"control character '\\x07'"),
    ],
)
def test_cards_that_are_no_short_text_are_refused(card: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        tiny.made_bundle(card=card)
    assert tiny.made_bundle(card="ü\t\r\n" * 4000).card


def test_unusual_floats_come_back_bit_by_bit(tmp_path: Path) -> None:
    made = tiny.made_bundle()
    unusual = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, -1.5, 0, 1, 2])
    made.tensors["stages.1.0.bn1.bias"] = unusual
    bundle.write(made, tmp_path / "x.safetensors")
    read = bundle.read(tmp_path / "x.safetensors")
    assert tiny.same_bits(read.tensors, made.tensors)


def test_load_gives_the_network_ready_to_answer(bundle_file: Path) -> None:
    network = models.load(bundle_file)
    image = torch.randn(2, 3, 8, 8)
    assert not network.training
    expected = tiny.network()
    rounding.assert_near(network(image), expected(image), expected)
    rounding.assert_near(models.load(str(bundle_file))(image), expected(image), expected)


def test_equal_bundles_are_equal_files(tmp_path: Path, bundle_file: Path) -> None:
    bundle.write(tiny.made_bundle(), tmp_path / "again.safetensors")
    bundle.write(bundle.read(bundle_file), tmp_path / "copied.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == bundle_file.read_bytes()
    assert (tmp_path / "copied.safetensors").read_bytes() == bundle_file.read_bytes()


def unfit(made: Bundle) -> None:
    del made.tensors["head.bias"]


def undescribable(made: Bundle) -> None:
    made.provenance["source"] = object()


@pytest.mark.parametrize("spoil", [unfit, undescribable])
def test_what_cannot_be_written_leaves_the_old_file_and_no_other(
    bundle_file: Path, spoil: Callable[[Bundle], None]
) -> None:
    before = bundle_file.read_bytes()
    made = tiny.made_bundle(name="new")
    spoil(made)
    for target in (bundle_file, bundle_file.with_name("other.safetensors")):
        with pytest.raises(BundleError):
            bundle.write(made, target)
    assert bundle_file.read_bytes() == before
    assert list(bundle_file.parent.iterdir()) == [bundle_file]


def test_a_full_disk_leaves_the_old_file_and_no_other(bundle_file: Path) -> None:
    before = bundle_file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for target in (bundle_file, bundle_file.with_name("other.safetensors")):
            with pytest.raises((OSError, ValueError, safetensors.SafetensorError)):
                bundle.write(tiny.made_bundle(name="new"), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert bundle_file.read_bytes() == before
    assert list(bundle_file.parent.iterdir()) == [bundle_file]


def test_a_path_that_cannot_be_replaced_leaves_no_part_behind(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        bundle.write(tiny.made_bundle(), tmp_path / "taken")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_a_bundle_knows_the_name_of_its_network() -> None:
    def named(network: ResNet) -> str | None:
        return bundling.from_network(network, **tiny.described()).variant

    assert named(build("resnet20", shortcut="A")) == "resnet20"
    assert named(build("wrn_16_3")) == "preact_wide_resnet16_3"
    assert named(tiny.network()) is None


@pytest.mark.parametrize("count", [0, 9, 11])
def test_labels_are_as_many_as_classes(count: int) -> None:
    with pytest.raises(BundleError, match=f"{count} labels do not fit 10 classes"):
        tiny.made_bundle(labels=["label"] * count)


def test_images_of_other_channels_than_the_input_says_are_refused() -> None:
    network = tiny.network(in_channels=1)
    with pytest.raises(BundleError, match=r"in_channels must be 3 for rgb images, not 1"):
        bundling.from_network(network, **tiny.described())


def test_tensors_that_do_not_fit_make_no_network() -> None:
    made = tiny.made_bundle()
    made.tensors["surplus"] = torch.ones(1)
    with pytest.raises(WeightsMismatch, match="1 tensors differ") as caught:
        made.network()
    assert str(caught.value).startswith("weights do not fit its architecture: 1 tensors differ")
    assert caught.value.difference == ["+ surplus [1]"]


def test_an_untrained_bundle_is_always_the_same_and_says_what_it_is() -> None:
    torch.manual_seed(1)
    first = bundling.untrained(tiny.ARCHITECTURE, "tiny", tiny.INPUT)
    state = torch.get_rng_state()
    second = bundling.untrained(tiny.ARCHITECTURE, "tiny", tiny.INPUT)
    assert tiny.same_bits(first.tensors, second.tensors)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers go on"
    assert "untrained" in first.provenance["source"]
    assert first.labels == labels.read("cifar10")


def test_a_bundle_of_channels_last_weights_is_the_same(tmp_path: Path) -> None:
    network = tiny.network()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bundle.write(bundling.from_network(network, **tiny.described()), tmp_path / "x.safetensors")
    read = bundle.read(tmp_path / "x.safetensors")
    assert tiny.same_bits(read.tensors, tiny.made_bundle().tensors)


def test_a_bundle_holds_the_weights_of_its_moment() -> None:
    network = tiny.network()
    made = bundling.from_network(network, **tiny.described())
    tiny.randomised(network, seed=1)
    assert tiny.same_bits(made.tensors, tiny.network().state_dict())


def with_label_missing(made: Bundle) -> None:
    made.labels = made.labels[1:]


def with_an_unknown_variant(made: Bundle) -> None:
    made.variant = "resnet21"


def with_numbers_for_keys(made: Bundle) -> None:
    made.metrics = {"top": {2: 0.5, 10: 0.9}}


def with_half_precision(made: Bundle) -> None:
    made.tensors["head.weight"] = made.tensors["head.weight"].half()


@pytest.mark.parametrize(
    "spoil",
    [with_label_missing, with_an_unknown_variant, with_numbers_for_keys, with_half_precision],
)
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, spoil: Callable[[Bundle], None]
) -> None:
    made = tiny.made_bundle()
    spoil(made)
    try:
        bundle.write(made, tmp_path / "x.safetensors")
    except ValueError:
        return
    models.load(tmp_path / "x.safetensors")(torch.zeros(1, 3, 8, 8))


def test_a_folder_that_does_not_exist_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        bundle.write(tiny.made_bundle(), tmp_path / "missing" / "x.safetensors")


def described_in(path: Path) -> dict[str, Any]:
    """What a file's header says, as any program can read it."""
    with safetensors.safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["resnet-serve"])
    return found


def without(fields: dict[str, Any], omitted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in omitted}


def test_a_header_describes_all_but_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    made = tiny.made_bundle()
    bundle.write(made, path)
    described = described_in(path)
    checksum = described.pop("checksum")
    expected = {
        "format": 1,
        "variant": None,
        "calibration": {},
        "architecture": without(asdict(tiny.ARCHITECTURE), bundle.OMITTED_OF_ARCHITECTURE),
        **tiny.described(),
    }
    expected["input"] = without(asdict(expected["input"]), bundle.OMITTED_OF_INPUT)
    assert described == json.loads(json.dumps(expected))
    assert bundle.read(path).fingerprint() == checksum
    assert "Müsli".encode() in path.read_bytes(), "as text that people can read"
    bundle.write(tiny.made_bundle(temperature=2.0, card="# A"), path)
    described = described_in(path)
    assert (described["temperature"], described["card"]) == (2.0, "# A")


def test_a_file_may_be_read_by_other_users(bundle_file: Path) -> None:
    assert bundle_file.stat().st_mode & 0o777 == 0o644


def test_a_fingerprint_is_that_of_everything() -> None:
    made = tiny.made_bundle()
    assert made.fingerprint() == tiny.made_bundle().fingerprint() == made.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", made.fingerprint())
    others = [
        tiny.made_bundle(name="other"),
        tiny.made_bundle(provenance={"source": "another"}),
        bundling.from_network(tiny.network(seed=1), **tiny.described()),
    ]
    assert len({each.fingerprint() for each in [made, *others]}) == 4


def test_untrained_weights_are_those_of_seed_0_and_have_a_fingerprint_at_once() -> None:
    made = bundling.untrained(tiny.ARCHITECTURE, "tiny", tiny.INPUT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet(tiny.ARCHITECTURE)
    assert tiny.same_bits(made.tensors, network.state_dict())
    assert (made.name, made.input) == ("tiny", tiny.INPUT)
    assert made.provenance == {
        "source": "random initialisation, untrained",
        "torch": torch.__version__,
    }
    # Of what the weights depend on, and not of the weights.
    made.tensors = {}
    again = bundling.untrained(tiny.ARCHITECTURE, "tiny", tiny.INPUT)
    assert made.fingerprint() == again.fingerprint() != again_with_weights(again)
    other = bundling.untrained(tiny.ARCHITECTURE, "other", tiny.INPUT)
    assert other.fingerprint() != again.fingerprint()


def again_with_weights(made: Bundle) -> str:
    """The fingerprint of a bundle of the same weights that nobody knows to be untrained."""
    return replace(made).fingerprint()


@pytest.mark.parametrize("temperature", [1e-6, 0.5, 7, 1e6])
def test_temperatures_reach_from_a_millionth_to_a_million(temperature: float) -> None:
    made = tiny.made_bundle(temperature=temperature)
    assert made.temperature == temperature
    assert type(made.temperature) is float


def test_a_card_has_at_most_20_000_bytes_of_text() -> None:
    assert tiny.made_bundle(card="ü" * 10_000).card == "ü" * 10_000
    assert tiny.made_bundle(card="a\tb\r\nc\u200b").card == "a\tb\r\nc\u200b"
    for control in ("\0", "\x0b", "\x7f", "\x85"):
        with pytest.raises(BundleError, match="without the control character"):
            tiny.made_bundle(card=f"a{control}b")


def test_a_network_may_be_called_by_any_of_its_names() -> None:
    network = build("preact_wide_resnet16_3")
    described = tiny.described(labels=labels.default(network.architecture.num_classes))
    made = bundling.from_network(network, **described)
    assert replace(made, variant="wrn_16_3").variant == "wrn_16_3"
    with pytest.raises(BundleError, match=r"^the architecture is not resnet20's$"):
        replace(made, variant="resnet20")


REFUSED_NAMES = [
    "",
    "a/b",
    "a\\b",
    "what?",
    "#1",
    "100%",
    "two words",
    "a\tb",
    "a\nb",
    "a\x00",
    "a\x7f",
    "no\u00a0break",
    "\ud800",
    ".",
    "..",
    "x" * 101,
]


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_what_a_path_cannot_hold_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"\Aname must [^\n]+\Z"):
        check_name(name)


@pytest.mark.parametrize(
    "name", [*variants.names(), *builtin.names(), "resnet18.a_tag", "Größe-2", "x" * 100]
)
def test_usual_names_are_names(name: str) -> None:
    assert check_name(name) == name
    assert name_from(name) == name
    assert PurePosixPath("/v1/models", name).name == name


@pytest.mark.parametrize("text", REFUSED_NAMES)
def test_any_text_becomes_a_name(text: str) -> None:
    assert check_name(name_from(text))


def test_words_are_kept() -> None:
    assert name_from(" my net/v2 (best) ") == "my-net-v2-(best)"
    assert name_from("..") == name_from("") == "model"


@pytest.mark.parametrize(("count", "channels"), [(1, "grey"), (3, "rgb"), (4, "rgba")])
def test_untrained_networks_see_images_of_their_channels(count: int, channels: str) -> None:
    made = bundling.untrained(tiny.architecture(in_channels=count), "tiny", tiny.INPUT)
    assert (made.input.channels, made.input.shape) == (channels, (8, 8, count))
    with pytest.raises(ValueError, match="images have 1, 3 or 4 channels, not 2"):
        bundling.untrained(tiny.architecture(in_channels=2), "tiny", tiny.INPUT)


@pytest.mark.parametrize(
    ("kind", "side", "fits"),
    [("average", 64, True), ("average", 36, False), ("blur", 36, True), ("blur", 4, False)],
)
def test_images_must_fit_where_an_antialiased_network_halves_them(
    kind: str, side: int, fits: bool
) -> None:
    network = tiny.network(antialias=kind, stem="imagenet")
    described = tiny.described(input=replace(tiny.INPUT, size=side, resize=side))
    if fits:
        network(torch.randn(1, 3, side, side))
        bundling.from_network(network, **described)
    else:
        with pytest.raises(RuntimeError):
            network(torch.randn(1, 3, side, side))
        with pytest.raises(BundleError, match=f"images of {side}x{side} pixels do not fit a netw"):
            bundling.from_network(network, **described)


def test_names_of_files_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    source = os.fsdecode(b"caf\xe9.onnx")
    bundle.write(tiny.made_bundle(provenance={"source": source}), path)
    assert bundle.read(path).provenance == {"source": "caf\N{REPLACEMENT CHARACTER}.onnx"}
