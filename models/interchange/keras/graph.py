"""The layers of a Keras model as one flat graph, from the description in its file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.bundle import BundleError

# What a Keras 2 file calls an addition that was written as `x + y`.
ADDITION = re.compile(r"(tf\S*[._])?add(v2)?(_|$)")
# They change nothing at inference: tests compare each with Keras.
NOTHING = {
    *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    *("ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom"),
    *("RandomTranslation", "RandomContrast", "RandomBrightness", "RandomHue", "RandomSaturation"),
    *("RandomSharpness", "RandomShear", "RandomPerspective", "RandomErasing", "RandomInvert"),
    *("RandomColorDegeneration", "RandomColorJitter", "RandomGaussianBlur", "RandomGrayscale"),
    *("RandomPosterization", "RandomElasticTransform", "RandAugment", "AugMix", "MixUp", "CutMix"),
    *("RandomHeight", "RandomWidth"),
}
# Far more than the deepest network of the papers has.
MOST = 20_000


@dataclass(frozen=True, slots=True)
class KerasLayer:
    """One layer. `kind`: its class; `sources`: the layers that it takes.

    `constants`: what an operation takes beside tensors: its arguments in order, and by name.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    sources: tuple[str, ...] = ()
    constants: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})

    @property
    def activation(self) -> str:
        return str(self.config.get("activation") or "linear")


@dataclass(slots=True)
class KerasGraph:
    """All layers by name, without those that change nothing; `output`: the name of the last."""

    nodes: dict[str, KerasLayer] = field(default_factory=dict)
    output: str = ""

    def source(self, node: KerasLayer) -> KerasLayer:
        return self.nodes[node.sources[0]]

    def chain(self, name: str) -> list[KerasLayer]:
        """The layers from this one back to one that has not exactly one source."""
        chain = [self.nodes[name]]
        while len(chain[-1].sources) == 1:
            chain.append(self.source(chain[-1]))
        return chain

    def needed(self) -> Iterator[KerasLayer]:
        """The layers that the output depends on, from the end."""
        waiting, known = [self.output], {self.output}
        while waiting:
            node = self.nodes[waiting.pop()]
            yield node
            new = [name for name in node.sources if name not in known]
            waiting += new
            known.update(new)


def read_graph(model: Mapping[str, Any]) -> KerasGraph:
    """The graph of a model's description, `{"class_name": ..., "config": {"layers": [...]}}`.

    Raises:
        BundleError: its structure is no classifier's.
    """
    graph = KerasGraph()
    end = _Building(graph).model(model, ())
    graph.output = end
    return graph


class _Building:
    def __init__(self, graph: KerasGraph) -> None:
        self.graph = graph

    def model(self, described: Mapping[str, Any], given: Sequence[str]) -> str:
        """Adds a model's layers; returns the one that gives what the model gives."""
        config = described["config"]
        functional = "output_layers" in config
        outputs = _histories(config["output_layers"]) if functional else []
        inputs = _histories(config["input_layers"]) if functional else []
        if functional and (len(outputs) != 1 or len(inputs) != 1):
            raise BundleError(
                f"the model {config['name']} has {len(inputs)} inputs and {len(outputs)} outputs; "
                "a classifier has one of each"
            )
        # Names are unique within a model; `own` maps them to those of the graph.
        own: dict[str, str] = {}
        last = given[0] if given else ""
        pending = list(config["layers"])
        if functional:
            pending = _ordered(pending)
        for layer in pending:
            name, kind = layer["config"]["name"], layer["class_name"]
            if functional:
                sources, constants = _called(name, layer)
                taken = tuple(own[source] for source in sources)
            else:
                taken, constants = ((last,) if last else ()), ((), {})
            if kind == "InputLayer" and given:
                last = own[name] = given[0]
                continue
            if not taken and kind != "InputLayer":
                taken = (self._images(layer),)
            last = own[name] = self._layer(layer, taken, constants)
        if not config["layers"]:
            raise BundleError(f"the model {config['name']} holds no layers")
        return own[outputs[0]] if functional else last

    def _layer(self, layer: Mapping[str, Any], sources: tuple[str, ...], constants: Any) -> str:
        config, kind = layer["config"], layer["class_name"]
        if "layers" in config:
            return self.model(layer, sources)
        if kind in NOTHING or (kind == "Activation" and config.get("activation") == "linear"):
            return sources[0]
        name = str(config["name"])
        if kind == "TFOpLambda" and ADDITION.match(name) and len(sources) == 2:
            kind = "Add"
        if kind == "Stack":
            sources, config = self._stacked(name, config, sources)
        if name in self.graph.nodes:
            raise BundleError(
                f"has two layers called {name}, in models within models: rename one of them, "
                'as in model.get_layer(...).name = "..."'
            )
        if len(self.graph.nodes) > MOST:
            raise BundleError(f"has more than {MOST:,} layers")
        self.graph.nodes[name] = KerasLayer(name, kind, config, sources, constants)
        return name

    def _stacked(
        self, name: str, config: Mapping[str, Any], sources: tuple[str, ...]
    ) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        """A stack of single channels of one tensor, as a layer that takes that tensor; `order`
        has their indices."""
        parts = [self.graph.nodes[source] for source in sources]
        keys = [part.constants[0][1:] for part in parts]
        order = [key[0][1] for key in keys if _is_channel(key)]
        tensors = {source for part in parts for source in part.sources}
        if len(order) != len(parts) or len(tensors) != 1 or config.get("axis") not in (-1, 3):
            raise BundleError(f"layer {name} stacks what no preprocessing does")
        return tuple(tensors), {**config, "order": order}

    def _images(self, layer: Mapping[str, Any]) -> str:
        """An input for a `Sequential` model that does not list its own."""
        shape = layer["config"].get("batch_input_shape") or layer["config"].get("batch_shape")
        name = "the images"
        self.graph.nodes[name] = KerasLayer(
            name, "InputLayer", {"name": name, "batch_shape": shape}
        )
        return name


def _is_channel(key: tuple[Any, ...]) -> bool:
    """Whether arguments are those of `x[..., index]`."""
    if len(key) != 1 or not isinstance(key[0], list) or len(key[0]) != 2:
        return False
    return key[0][0] is Ellipsis and isinstance(key[0][1], int)


def _histories(value: Any) -> list[str]:
    """The layers' names in `["dense", 0, 0]`, or in lists and dictionaries of such."""
    if isinstance(value, dict):
        return [name for part in value.values() for name in _histories(part)]
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return [value[0]]
    return [name for part in value for name in _histories(part)]


def _called(name: str, layer: Mapping[str, Any]) -> tuple[list[str], tuple[Any, Any]]:
    """The layers that a layer takes, and the constants."""
    calls = layer["inbound_nodes"]
    if len(calls) > 1:
        raise BundleError(f"layer {name} is applied {len(calls)} times; a ResNet's layers are once")
    if not calls:
        return [], ((), {})
    call = calls[0]
    if isinstance(call, dict):
        sources = [*_tensors(call["args"]), *_tensors(call["kwargs"])]
        return sources, (tuple(map(_constant, call["args"])), call["kwargs"])
    # Keras 2 wrote [[layer, node, tensor, {arguments}], ...].
    call = [call] if call and isinstance(call[0], str) else call
    sources, named = [], {}
    for part in call:
        sources.append(part[0])
        for key, value in (part[3] if len(part) > 3 else {}).items():
            if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
                sources.append(value[0])
            else:
                named[key] = value
    return sources, ((), named)


def _tensors(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
            return
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _tensors(part)


def _constant(value: Any) -> Any:
    """An argument as Python has it; None for a tensor."""
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config", {})
        if kind in ("__tensor__", "__numpy__"):
            return config["value"]
        if kind == "__slice__":
            return slice(config["start"], config["stop"], config["step"])
        return Ellipsis if kind == "__ellipsis__" else None
    return [_constant(part) for part in value] if isinstance(value, list) else value


def _ordered(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Layers after those that they take; Keras 2 lists them by their distance from the end."""
    done: set[str] = set()
    ordered: list[Mapping[str, Any]] = []
    waiting = list(layers)
    while waiting:
        later = []
        for layer in waiting:
            name = layer["config"]["name"]
            if done.issuperset(_called(name, layer)[0]):
                ordered.append(layer)
                done.add(name)
            else:
                later.append(layer)
        if len(later) == len(waiting):
            names = ", ".join(str(layer["config"]["name"]) for layer in later[:3])
            raise BundleError(f"layers {names} depend on what is not in the model")
        waiting = later
    return ordered
