"""OpenVINO on the CPU: in int8, in bf16 or in fp32."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from models import processor
from service.engines import cache as disk
from service.engines.blueprint import Blueprint
from service.engines.host import HostEngine
from service.engines.openvino_graph import build
from service.engines.openvino_library import ov
from service.engines.tuning import Forward, Way, tune

if TYPE_CHECKING:
    from typing_extensions import Buffer  # Python 3.12 has it in collections.abc.

# Version of the cached model: float32 pixels in, probabilities and maps out.
FORM = 3


def openvino(blueprint: Blueprint) -> HostEngine:
    """The network compiled by OpenVINO, one set of weights for all batch sizes.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    bundle = blueprint.bundle
    ranges = bundle.calibration["ranges"] if blueprint.precision == "int8" else {}
    # In a quantised network, for the operations that are not in 8 bits.
    use_bf16 = blueprint.precision == "bf16" or (ranges and processor.has_bf16())
    precision = "bf16" if use_bf16 else "f32"

    @cache
    def graph() -> Any:
        return build(bundle.classifier(), bundle.input.shape, blueprint.max_batch, ranges)

    def on_trial(way: Way) -> Forward:
        return _Streams(_compile(graph(), _options(way, precision)), way.streams)

    tuning = tune(on_trial, blueprint, "openvino", streams=True)
    forward: Forward = _load(tuning.whole, graph, precision, blueprint)
    if tuning.split is not None:
        split = _load(tuning.split, graph, precision, blueprint)
        forward = _by_size(forward, split, tuning.split_from)
    return HostEngine("openvino", blueprint, forward, tuning)


def _options(way: Way, precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": way.streams,
        "INFERENCE_NUM_THREADS": way.streams * way.threads,
        "INFERENCE_PRECISION_HINT": precision,
        # Pinned threads of several engines, or of several containers, would share a core while
        # others idle.
        "ENABLE_CPU_PINNING": False,
    }


def _by_size(small: Forward, large: Forward, limit: int) -> Forward:
    """`large` for batches of at least `limit` images, else `small`."""

    def forward(
        batch: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]:
        return (large if len(batch) >= limit else small)(batch)

    return forward


class _Streams:
    """Computes a batch in as many parts as there are streams, in parallel.

    `weights` is the memory that holds the weights, if the model does not own it.
    """

    def __init__(self, compiled: Any, streams: int, weights: object = None) -> None:
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        self._maps = len(compiled.outputs) - 1
        self._weights = weights  # Set last, so that it is freed last.

    def __call__(
        self, batch: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]:
        parts = np.array_split(batch, min(len(self._requests), len(batch)))
        requests = self._requests[: len(parts)]
        for request, part in zip(requests, parts, strict=True):
            request.set_input_tensor(ov.Tensor(part, shared_memory=True))
        if len(requests) == 1:
            requests[0].infer()  # In this thread: waking another takes as long as a small network.
        else:
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()

        # Copies: the next batch overwrites the requests' memory.
        def output(index: int) -> NDArray[np.float32]:
            return np.concatenate([request.get_output_tensor(index).data for request in requests])

        # A network without classes has but its maps.
        probabilities = np.empty((len(batch), 0), np.float32) if self._maps == 0 else output(0)
        return probabilities, partial(output, self._maps)


def _compile(model: Any, options: dict[str, Any]) -> Any:
    return _core().compile_model(model, "CPU", options)


def _load(way: Way, graph: Callable[[], Any], precision: str, blueprint: Blueprint) -> _Streams:
    """The model from the cache, else compiled.

    OpenVINO's own cache would leave half a file on a full disk, and read it at the next start.
    """
    options = _options(way, precision)
    path = blueprint.cached("openvino", ".blob", FORM, ov.__version__, sorted(options.items()))

    def read(file: Path) -> _Streams:
        # The weights stay in the file, whose pages the system may drop and read again. The mapping
        # is private, because OpenVINO requires writable memory.
        weights = ov.Tensor(np.memmap(file, np.uint8, mode="c"), shared_memory=True)
        return _Streams(_core().import_model(weights, "CPU", options), way.streams, weights)

    streams = disk.load(path, read)
    if streams is None:
        compiled = _compile(graph(), options)
        disk.store(path, partial(_export, compiled))
        streams = _Streams(compiled, way.streams)
    return streams


class _File(io.BytesIO):
    """A file for OpenVINO, which writes only to objects of this type, without a copy in memory.

    OpenVINO ignores errors of `write`: `failure` is the last one.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self.seek, self.tell = file.seek, file.tell  # type: ignore[method-assign]
        self._file = file

    def write(self, data: Buffer, /) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise


def _export(compiled: Any, path: Path) -> None:
    with path.open("wb") as file:
        stream = _File(file)
        compiled.export_model(stream)
    if stream.failure is not None:
        raise stream.failure


@cache
def _core() -> Any:
    """One for the process, which lives as long.

    Its CPU plugin gives the thread that creates it a signal stack. When another thread destroys
    it, it frees that stack, and the next signal that the first thread handles ends the process.
    """
    return ov.Core()
