"""OpenVINO on the CPU: quantised or in bf16 where the CPU has it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from models import hardware
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.host import Forward, HostEngine
from service.engines.openvino_graph import build

# Where an image takes longer than this, in seconds, the rest of a request is little beside it, and
# need not have a CPU to itself ...
SLOW = 0.02
# ... if with all CPUs the network is so many times as fast.
WORTH_A_CPU = 1.1
# Of what is kept: float32 pixels in, probabilities and maps out.
FORM = 2


def openvino(blueprint: Blueprint) -> HostEngine:
    """The network compiled by OpenVINO, one set of weights for all batch sizes.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    bundle = blueprint.bundle
    ranges = bundle.calibration["ranges"] if blueprint.precision == "int8" else {}
    model = build(bundle.classifier(), bundle.input.size, blueprint.max_batch, ranges)
    # Of a quantised network, what is not in 8 bits.
    use_bf16 = blueprint.precision == "bf16" or (ranges and hardware.cpu_has_bf16())
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if use_bf16 else "f32",
        # Pinned threads of several engines, or of several containers, would share a core while
        # others idle.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = partial(_forward, model, options, blueprint)
    forward = compiled(blueprint.threads)
    if blueprint.most_threads > blueprint.threads:
        blank = np.zeros((1, bundle.input.size, bundle.input.size, 3), np.float32)
        seconds = _seconds(forward, blank)
        if seconds > SLOW:
            del forward  # Two at once would need twice the memory.
            forward = compiled(blueprint.most_threads)
            if _seconds(forward, blank) * WORTH_A_CPU > seconds:
                del forward
                forward = compiled(blueprint.threads)
    return HostEngine("openvino", blueprint, forward)


def _seconds(forward: Forward, batch: NDArray[np.float32]) -> float:
    """Of the faster of two runs; the first may allocate."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        forward(batch)
        times.append(time.perf_counter() - started)
    return min(times)


def _forward(model: Any, options: dict[str, Any], blueprint: Blueprint, threads: int) -> Forward:
    options = options | {"INFERENCE_NUM_THREADS": threads}
    request = _compile(model, options, blueprint).create_infer_request()

    # Copies: the next batch overwrites the request's own memory.
    def output(index: int) -> NDArray[np.float32]:
        return np.array(request.get_output_tensor(index).data)

    def forward(
        batch: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]:
        request.set_input_tensor(ov.Tensor(batch, shared_memory=True))
        request.infer()
        return output(0), partial(output, 1)

    return forward


def _compile(model: Any, options: dict[str, Any], blueprint: Blueprint) -> Any:
    """The model as it was kept, or compiled.

    OpenVINO's own cache would leave half a file on a full disk, and read it at the next start.
    """
    core = ov.Core()
    path = blueprint.cached("openvino", ".blob", FORM, ov.__version__, sorted(options.items()))
    found = cache.kept(path, lambda file: core.import_model(file.read_bytes(), "CPU", options))
    if found is None:
        made = found = core.compile_model(model, "CPU", options)
        cache.keep(path, lambda file: file.write_bytes(_exported(made)))
    return found


def _exported(compiled: Any) -> bytes:
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()
