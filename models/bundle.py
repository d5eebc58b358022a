"""The bundle: weights and everything needed to serve them, in one `.safetensors` file.

The header has one metadata entry, `resnet-serve`: a JSON object with the fields of `Bundle` and a
SHA-256 of them and the tensors. Reading a bundle executes no code, unless its network has a block
or a head of one's own and the reader allows that code by name: see `models.own_code`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models import bundle_fields, files, own_code, variants
from models.architecture import Architecture
from models.bundle_header import METADATA_KEY, NOT_A_BUNDLE, refuse_other
from models.classifier import Classifier, Outputs
from models.naming import check_name, in_utf8
from models.own_code import BUILT_IN, OwnCode
from models.preprocess import InputSpec
from models.resnet import ResNet, on_meta
from models.storage import Storage, checksum, loaded, rounded, stored
from models.summary import map_sides
from models.views import Views

FORMAT = 1
# Omitted from the description at these values: the checksums of bundles written before these
# fields existed stay valid.
OMITTED = {
    "temperature": 1.0,
    "card": "",
    "outputs": "exclusive",
    "views": "plain",
    "storage": "fp32",
    "block": "",
    "head": "",
}
OMITTED_OF_ARCHITECTURE = {
    "head": (),
    "stem_channels": 0,
    "stem_stride": 0,
    "pool": "usual",
    "antialias": "none",
    "dilation": (),
}
OMITTED_OF_INPUT = {"channels": "rgb", "fill": ()}


class BundleError(ValueError):
    """A file is not a bundle, or is damaged; the message gives the reason in one line."""


class WeightsMismatch(BundleError):
    """Weights do not fit their architecture; `difference` has a -/+ line per tensor."""

    def __init__(self, message: str, difference: list[str]) -> None:
        super().__init__(message)
        self.difference = difference


@dataclass(kw_only=True, eq=False)
class Bundle:
    """Weights and everything needed to serve them.

    `name`: the model's name in a service; see `models.naming.check_name`.
    `variant`: the named network that `architecture` is based on, or None.
    `labels`: the class names, one for each class; none for a network without a head.
    `outputs`: whether the classes are "exclusive" (softmax) or "independent" (sigmoid).
    `tensors`: the network's state dict, in float32.
    `provenance`: where the weights come from: at least `source`.
    `metrics`: measured figures, for instance `{"cifar10-test": {"top1": 0.91, "images": 10000}}`.
    `calibration`: for 8-bit engines, `{"ranges": {module: [low, high]}, ...}`; else empty.
    `temperature`: divides the logits before the softmax (Guo 2017, arXiv:1706.04599).
    `card`: what users should know about the model, in Markdown; at most 20 kB.
    `views`: what a prediction averages: the "plain" image, or the image and its "mirrored" one,
        which takes twice as long; see `models.views`. Digits and text must not be mirrored.
    `storage`: "fp16" writes the weights of convolutions and linear layers in 16 bits, and rounds
        `tensors` accordingly; see `models.storage`.
    `block`, `head`: the import path of code of one's own, such as `package.module:Class`, that
        replaces the blocks or the head of `architecture`; "" for the built-in ones.
    `code`: that code, imported because someone allowed it; see `allowing`.
    """

    name: str
    architecture: Architecture
    input: InputSpec
    labels: tuple[str, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    variant: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    card: str = ""
    outputs: Outputs = "exclusive"
    views: Views = "plain"
    storage: Storage = "fp32"
    block: str = ""
    head: str = ""
    code: OwnCode = field(default=BUILT_IN, repr=False, compare=False)
    _fingerprint: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            bundle_fields.check_types(self)
            check_name(self.name)
            own_code.check_path(self.block, "block")
            own_code.check_path(self.head, "head")
            bundle_fields.check_card(self.card)
            self.labels = bundle_fields.checked_labels(self.labels)
            self.temperature = bundle_fields.checked_temperature(self.temperature)
        except ValueError as error:
            raise BundleError(str(error)) from None
        if self.variant is not None:
            row, match = variants.variant(self.variant), variants.find(self.architecture)
            if match is None or match.architecture != row.architecture:
                raise BundleError(f"the architecture is not {self.variant}'s")
        if len(self.labels) != self.architecture.num_classes:
            raise BundleError(
                f"{len(self.labels)} labels do not fit {self.architecture.num_classes} classes"
            )
        for name, kind in (("outputs", Outputs), ("views", Views), ("storage", Storage)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise BundleError(f"{name} must be {' or '.join(get_args(kind))}, not {value!r}")
        if self.architecture.num_classes == 1 and self.outputs == "exclusive":
            raise BundleError(
                "one exclusive class would have the probability 1 for every image; outputs must "
                "be independent, or the classes two"
            )
        channels = self.input.shape[2]
        if self.architecture.in_channels != channels:
            raise BundleError(
                f"in_channels must be {channels} for {self.input.channels} images, not "
                f"{self.architecture.in_channels}"
            )
        self._check_code()
        if self.architecture.antialias != "none" and not self.own_code:
            self._check_sides()
        if self.storage != "fp32":
            self.tensors = rounded(self.tensors, self.storage)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """Whether all fields and all tensors are equal."""
        if not isinstance(other, Bundle):
            return NotImplemented
        mine, theirs = self.tensors, other.tensors
        return (self.description(), mine.keys()) == (other.description(), theirs.keys()) and all(
            torch.equal(value, theirs[name]) for name, value in mine.items()
        )

    def _check_code(self) -> None:
        if self.block and self.variant:
            raise BundleError(f"a network with blocks of its own is no {self.variant}")
        if self.head and not self.architecture.num_classes:
            raise BundleError("a network without classes has no head of its own")

    @property
    def depth(self) -> int:
        """The number in the variant's name; of others, layers as He 2015 counts them."""
        return (variants.variant(self.variant) if self.variant else self.architecture).depth

    @property
    def own_code(self) -> tuple[str, ...]:
        """The import paths of the network's own block and head."""
        return tuple(path for path in (self.block, self.head) if path)

    def allowing(self, allow: Collection[str]) -> Bundle:
        """This bundle, with the code that it names imported.

        `allow`: import paths of classes, or of modules for all of theirs.

        Raises:
            BundleError: code is not allowed, or cannot be imported, or the weights do not fit it.
        """
        if not self.own_code:
            return self
        ready = replace(self, code=self._imported(allow))
        ready._fingerprint = self._fingerprint
        check_fit(ready.skeleton(), ready.tensors, " and ".join(self.own_code))
        return ready

    def _imported(self, allow: Collection[str]) -> OwnCode:
        parts = {what: path for what in ("block", "head") if (path := getattr(self, what))}
        try:
            return OwnCode(
                **{what: own_code.imported(path, what, allow) for what, path in parts.items()}
            )
        except ValueError as error:
            raise BundleError(str(error)) from None

    def skeleton(self) -> ResNet:
        """The network without these weights: names and shapes on the meta device; with its own
        code on the CPU, as its modules may make tensors that no state dict has.

        Raises:
            BundleError: its own code was not allowed, or does not make a network.
        """
        if not self.own_code:
            return on_meta(self.architecture)
        if self.code == BUILT_IN:
            self._imported(())
        try:
            with torch.random.fork_rng(devices=()):
                return ResNet(self.architecture, block=self.code.block, head=self.code.head)
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            reason = f"{type(error).__name__}: {error}"
            raise BundleError(f"{' and '.join(self.own_code)} makes no network: {reason}") from None

    def _check_sides(self) -> None:
        """Averages drop the last of an odd number of pixels, and shortcuts do not."""
        try:
            map_sides(on_meta(self.architecture), self.input.size)
        except RuntimeError:
            raise BundleError(
                f"images of {self.input.height}x{self.input.width} pixels do not fit a network "
                f"with antialias {self.architecture.antialias}: sides must be even wherever it "
                "halves them, as those of 224 and 256 are"
            ) from None

    def network(self) -> ResNet:
        """The network in evaluation mode; it shares memory with `tensors`.

        Raises:
            WeightsMismatch: a tensor is missing, unexpected, or has another shape.
            BundleError: its own code was not allowed, see `allowing`.
        """
        network = self.skeleton()
        check_fit(network, self.tensors, self.variant or "its architecture")
        network.load_state_dict(self.tensors, assign=True)
        return network.eval()

    def classifier(self) -> Classifier:
        """The network from pixels to probabilities in evaluation mode.

        Raises:
            WeightsMismatch: see `network`.
        """
        network, spec = self.network(), self.input
        return Classifier(network, spec, self.temperature, self.outputs, self.views).eval()

    def fingerprint(self) -> str:
        """A digest that only equal bundles share; that of the file, if it was read from one."""
        if not self._fingerprint:
            self._fingerprint = checksum(self.description(), stored(self.tensors, self.storage))
        return self._fingerprint

    def description(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        described = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        del described["tensors"], described["code"]
        described["architecture"] = _without(OMITTED_OF_ARCHITECTURE, asdict(self.architecture))
        described["input"] = _without(OMITTED_OF_INPUT, asdict(self.input))
        return _without(OMITTED, described)


def _without(omitted: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in described.items() if k not in omitted or v != omitted[k]}


def check_fit(network: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises `WeightsMismatch` unless names and shapes match the network's."""
    state = network.state_dict()
    for name, value in state.items():
        if name in tensors and tensors[name].dtype != value.dtype:
            raise BundleError(f"{name} must be {value.dtype}, not {tensors[name].dtype}")
    expected = {name: tuple(value.shape) for name, value in state.items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    sides = (("-", expected), ("+", found))
    lines: list[str] = []
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            lines += [f"{sign} {name} {list(side[name])}" for sign, side in sides if name in side]
    if lines:
        count = len({line.split()[1] for line in lines})
        raise WeightsMismatch(
            f"weights do not fit {what}: {count} tensors differ, first {'; '.join(lines[:2])} "
            "(- expected, + found)",
            lines,
        )


def write(bundle: Bundle, path: str | os.PathLike[str]) -> None:
    """Writes a bundle to a file, atomically.

    Raises:
        BundleError: it could not be read back.
        OSError: the file cannot be written.
    """
    if not isinstance(bundle, Bundle):
        kind = type(bundle).__name__
        raise BundleError(f"write takes a Bundle, not a {kind}; see from_network")
    # Fields may have changed since the check: what could not be read back must not be written.
    bundle = replace(bundle)
    check_fit(bundle.skeleton(), bundle.tensors, "its architecture")
    try:  # As JSON returns it: keys become strings.
        text = json.dumps(
            {"format": FORMAT, **bundle.description()}, ensure_ascii=False, allow_nan=False
        )
        description = json.loads(in_utf8(text))
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"provenance, metrics and calibration must be JSON values ({error})"
        ) from None
    tensors = {
        name: value.cpu().contiguous()
        for name, value in stored(bundle.tensors, bundle.storage).items()
    }
    description["checksum"] = checksum(description, tensors)
    metadata = {METADATA_KEY: json.dumps(description, ensure_ascii=False)}
    try:
        with files.atomic(Path(path)) as file:
            safetensors.torch.save_file(tensors, file, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def read(path: str | os.PathLike[str], *, allow: Collection[str] | None = ()) -> Bundle:
    """The bundle in a file, after checking its checksum and that its weights fit.

    `allow`: see `Bundle.allowing`. None: the file is read, and `Bundle.allowing` may follow.

    Raises:
        BundleError: the message names the file and the problem in one line.
    """
    path = Path(path)
    try:
        found = _read(path)
        return found if allow is None else found.allowing(allow)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{path}: {error}", error.difference) from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None


def _read(path: Path) -> Bundle:
    files.check_regular(path)
    with path.open("rb") as beginning:
        refuse_other(beginning.read(9), path.stat().st_size)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BundleError(f"not a whole safetensors file ({error})") from None
    if METADATA_KEY not in metadata:
        raise BundleError(NOT_A_BUNDLE)
    try:
        description = json.loads(metadata[METADATA_KEY])
        sealed = description.pop("checksum")
        version = description["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError("its resnet-serve metadata is damaged") from None
    if version != FORMAT:
        raise BundleError(f"bundle format {version}; this version reads format {FORMAT}")
    if sealed != checksum(description, tensors):
        raise BundleError("its checksum does not match: the file was changed or damaged")
    del description["format"]
    try:
        _refuse_newer(description, Bundle)
        _refuse_newer(description["architecture"], Architecture)
        _refuse_newer(description["input"], InputSpec)
        description["architecture"] = Architecture(**description["architecture"])
        description["input"] = InputSpec(**description["input"])
        in_memory = loaded(tensors, description.get("storage", "fp32"))
        bundle = Bundle(tensors=in_memory, **description)
    except (TypeError, KeyError) as error:
        raise BundleError(f"its resnet-serve metadata is incomplete ({error})") from None
    if not bundle.own_code:
        check_fit(bundle.skeleton(), bundle.tensors, bundle.variant or "its architecture")
    bundle._fingerprint = sealed
    return bundle


def _refuse_newer(described: Collection[str], known: type[Any]) -> None:
    if unknown := set(described) - {field.name for field in fields(known)}:
        raise BundleError(
            f"made by a newer resnet-serve, whose {min(unknown)!r} this one does not know; upgrade"
        )
