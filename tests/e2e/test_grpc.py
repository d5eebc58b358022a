"""gRPC as real clients see it: Triton's, and those who learn everything by reflection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.grpc import aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from benchmarks.common.protobuf import field
from service.repository import catalog
from tests.conftest import (
    PATIENCE,
    Service,
    client,
    encoded,
    started,
)
from tests.e2e.test_endpoints import samples
from tests.e2e.test_runtime_models import ADMIN, KEY, write
from tests.e2e.test_workers import children
from tests.support import rounding
from tests.support.waiting import until

NAME = "resnet20-cifar10"
CLASSES = 10
LIMIT = 2**20
BUILTIN = catalog.load(f"builtin:{NAME}").bundle.tensors
same_probabilities = partial(rounding.assert_probabilities_near, layers=BUILTIN)
FILES = [encoded(), encoded("JPEG", (50, 40)), encoded("BMP", (20, 33))]
ADDRESS = re.compile(r"serving gRPC on ([^\s,]+)")
REFLECTIONS = [f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")]
SERVICE = "/inference.GRPCInferenceService"
ADMIN_METADATA = {name.lower(): value for name, value in ADMIN.items()}
MODELS = f"""
models:
  - {{spec: 'builtin:{NAME}', engine: eager, precision: fp32, max_batch: 2}}
  - {{spec: FOLDER/a.safetensors, name: tiny, engine: eager, precision: fp32, max_batch: 2}}
  - spec: FOLDER/b.safetensors
    name: slow
    engine: eager
    precision: fp32
    max_batch: 4
    max_queue: 2
    max_delay_ms: 60000
"""


def address_of(service: Service) -> str:
    return service._wait_for(ADDRESS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("grpc")
    write(made / "a.safetensors", "a", 3)
    write(made / "b.safetensors", "b", 4)
    (made / "serve.yaml").write_text(MODELS.replace("FOLDER", str(made)))
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Service]:
    """Two front ends."""
    with started(
        *("--config", str(folder / "serve.yaml"), "--workers", "2", "--grpc-port", "0"),
        RESNET_SERVE_WORKERS="2",
        RESNET_SERVE_ADMIN_KEYS=KEY,
        RESNET_SERVE_MODEL_FOLDER=str(folder),
        RESNET_SERVE_MAX_BATCH_BODY_BYTES=str(LIMIT),
        RESNET_SERVE_MAX_BATCH_IMAGES="8",
    ) as running:
        yield running


@pytest.fixture
def asking(served: Service) -> Iterator[Any]:
    with triton.InferenceServerClient(address_of(served)) as found:
        yield found


@contextmanager
def channel(service: Service, address: str = "") -> Iterator[Any]:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address or address_of(service), options) as opened:
        yield opened


def call(opened: Any, method: str, content: bytes, **options: Any) -> bytes:
    """Bytes as they are; the service need not be able to parse them."""
    unary = opened.unary_unary(f"{SERVICE}/{method}")
    found: bytes = unary(content, timeout=options.pop("timeout", PATIENCE), **options)
    return found


def refused(opened: Any, method: str, content: bytes, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(opened, method, content, **options)
    return caught.value


def images(*files: bytes) -> Any:
    given = triton.InferInput("image", [len(files), 1], "BYTES")
    given.set_data_from_numpy(np.array([[file] for file in files], dtype=np.object_))
    return given


def tensor(name: str, values: NDArray[Any]) -> Any:
    datatype = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}[values.dtype.name]
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def probabilities(asking: Any, given: Any, **options: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = asking.infer(NAME, [given], **options).as_numpy("probabilities")
    return found


def request(name: str, datatype: str, shape: list[int], model: str = NAME, **more: Any) -> Any:
    """A request of one input; `more`: typed contents, or raw_input_contents."""
    raw = more.pop("raw", [])
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=raw)
    given = message.inputs.add(name=name, datatype=datatype, shape=shape)
    if more:
        given.contents.CopyFrom(service_pb2.InferTensorContents(**more))
    return message


def raw_rows(response: bytes) -> NDArray[np.float32]:
    message = service_pb2.ModelInferResponse.FromString(response)
    (content,) = message.raw_output_contents
    return np.frombuffer(content, "<f4").reshape(message.outputs[0].shape)


def refusals(service: Service, model: str, reason: str) -> float:
    series = f'resnet_serve_refusals_total{{model="{model}",reason="{reason}"}}'
    return samples(service).get(series, 0.0)


def test_the_service_and_its_models_tell_what_they_are(asking: Any) -> None:
    assert asking.is_server_live()
    assert asking.is_server_ready()
    assert asking.is_model_ready(NAME, "1")
    assert not asking.is_model_ready(NAME, "2")
    assert not asking.is_model_ready("nope")
    assert "classification" in asking.get_server_metadata().extensions
    told = asking.get_model_metadata(NAME)
    assert (told.name, told.versions) == (NAME, ["1"])
    assert {each.name: list(each.shape) for each in told.inputs} == {
        "image": [-1, 1],
        "pixels": [-1, 32, 32, 3],
        "input": [-1, 3, 32, 32],
    }
    assert (told.outputs[0].name, list(told.outputs[0].shape)) == ("probabilities", [-1, CLASSES])
    configuration = asking.get_model_config(NAME, "1").config
    assert configuration.max_batch_size == 8
    assert {each.name for each in configuration.input} == {"image", "pixels", "input"}
    with pytest.raises(InferenceServerException, match="no model is called 'nope'") as caught:
        asking.get_model_metadata("nope")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_files_are_classified_as_elsewhere(
    served: Service, asking: Any, compression: str | None
) -> None:
    found = asking.infer(
        NAME, [images(*FILES)], request_id="seven", compression_algorithm=compression
    )
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", NAME, "1")
    assert len(response.raw_output_contents) == 1
    rows = found.as_numpy("probabilities")
    for file, row in zip(FILES, rows, strict=True):
        answer = client.post(f"{served.url}/v1/classify", params={"top_k": 10}, content=file).json()
        named = {each["class_id"]: each["probability"] for each in answer["predictions"]}
        same_probabilities([named[number] for number in range(CLASSES)], row)


def test_tensors_are_computed_as_they_are(served: Service, asking: Any) -> None:
    given = pixels(5)
    rows = probabilities(asking, tensor("pixels", given))
    assert rows.shape == (5, CLASSES)
    same_probabilities(probabilities(asking, tensor("pixels", given[0])), rows[:1])
    spec = client.get(f"{served.url}/v1/models/{NAME}").json()["input"]
    values = ((given / 255 - spec["mean"]) / spec["std"]).astype(np.float32)
    planes = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    same_probabilities(probabilities(asking, tensor("input", planes)), rows)
    halves = planes.astype(np.float16)
    wanted = probabilities(asking, tensor("input", halves.astype(np.float32)))
    same_probabilities(probabilities(asking, tensor("input", halves)), wanted)
    outputs = [triton.InferRequestedOutput(name) for name in ("embedding", "probabilities")]
    found = asking.infer(NAME, [tensor("pixels", given)], outputs=outputs)
    assert found.as_numpy("embedding").shape == (5, 64)
    same_probabilities(found.as_numpy("probabilities"), rows)


def test_typed_contents_are_the_same_as_raw_ones(served: Service, asking: Any) -> None:
    given = pixels(2)
    rows = probabilities(asking, tensor("pixels", given))
    flat, shape = given.ravel().tolist(), list(given.shape)
    of_files = probabilities(asking, images(*FILES))
    values = np.zeros((1, 3, 32, 32), np.float32)
    with channel(served) as opened:

        def computed(message: Any) -> NDArray[np.float32]:
            return raw_rows(call(opened, "ModelInfer", message.SerializeToString()))

        for name in ("uint_contents", "int_contents"):
            typed = request("pixels", "UINT8", shape, **{name: flat})  # type: ignore[arg-type]
            same_probabilities(computed(typed), rows)
        typed = request("image", "BYTES", [3], bytes_contents=FILES)
        same_probabilities(computed(typed), of_files)
        typed = request("input", "FP32", [1, 3, 32, 32], fp32_contents=values.ravel().tolist())
        wanted = probabilities(asking, tensor("input", values))
        same_probabilities(computed(typed), wanted)


def test_classes_come_with_their_labels(asking: Any) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=3)
    told = asking.infer(NAME, [images(*FILES)], outputs=[wanted]).as_numpy("probabilities")
    assert told.shape == (3, 3)
    rows = probabilities(asking, images(*FILES))
    for texts, row in zip(told, rows, strict=True):
        _, numbers, labels = zip(*(text.decode().split(":") for text in texts), strict=True)
        assert list(map(int, numbers)) == np.argsort(-row)[:3].tolist()
        assert all(label.isalpha() for label in labels)


def test_many_requests_at_a_time(asking: Any) -> None:
    done: queue.Queue[Any] = queue.Queue()
    for number in range(24):
        asking.async_infer(
            NAME,
            [images(FILES[number % 3])],
            lambda result, error: done.put((result, error)),
            request_id=str(number),
            priority=1,
            timeout=30_000_000,
        )
    found = [done.get(timeout=PATIENCE) for _ in range(24)]
    assert not [error for _, error in found if error]
    rows = probabilities(asking, images(*FILES))
    for result, _ in found:
        number = int(result.get_response().id)
        same_probabilities(result.as_numpy("probabilities"), rows[number % 3][None])


def test_the_asynchronous_client(served: Service) -> None:
    async def ask() -> tuple[bool, NDArray[np.float32], str]:
        async with triton_aio.InferenceServerClient(address_of(served)) as asking:
            ready = await asking.is_server_ready()
            found = await asking.infer(NAME, [images(*FILES)])
            with pytest.raises(InferenceServerException) as caught:
                await asking.infer("nope", [images(*FILES)])
            return ready, found.as_numpy("probabilities"), caught.value.status()

    ready, rows, status = asyncio.run(ask())
    assert ready
    assert rows.shape == (3, CLASSES)
    assert status == "StatusCode.NOT_FOUND"


def test_a_stream_answers_in_order_and_survives_errors(asking: Any) -> None:
    done: queue.Queue[Any] = queue.Queue()
    asking.start_stream(lambda result, error: done.put((result, error)))
    names = [NAME, "nope", NAME, "tiny"] * 6
    for number, name in enumerate(names):
        asking.async_stream_infer(name, [images(FILES[0])], request_id=str(number))
    found = [done.get(timeout=PATIENCE) for _ in names]
    asking.stop_stream()
    for number, (name, (result, error)) in enumerate(zip(names, found, strict=True)):
        if name == "nope":
            assert "no model is called 'nope'" in str(error)
        else:
            assert result.get_response().id == str(number)
            assert result.as_numpy("probabilities").shape[1] == (3 if name == "tiny" else CLASSES)


def test_whoever_cancels_frees_the_slot_and_counts_as_one_who_left(
    served: Service, asking: Any
) -> None:
    before = refusals(served, "slow", "caller_left")
    done: queue.Queue[Any] = queue.Queue()
    depth = 'resnet_serve_queue_depth{model="slow"}'
    calls = [
        asking.async_infer("slow", [images(FILES[0])], lambda *found: done.put(found))
        for _ in range(2)
    ]
    until(lambda: samples(served)[depth] == 2)
    with channel(served) as opened:
        message = request("image", "BYTES", [1], "slow", bytes_contents=FILES[:1])
        error = refused(opened, "ModelInfer", message.SerializeToString())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the queue is full" in error.details()
    trailers = dict(error.trailing_metadata())
    assert int(trailers["retry-after"]) >= 1
    assert trailers["x-request-id"]
    for each in calls:
        each.cancel()
    until(lambda: samples(served)[depth] == 0)
    until(lambda: refusals(served, "slow", "caller_left") == before + 2)


def test_whoever_disconnects_frees_the_slot(served: Service) -> None:
    before = refusals(served, "slow", "caller_left")
    depth = 'resnet_serve_queue_depth{model="slow"}'
    message = request("image", "BYTES", [1], "slow", bytes_contents=FILES[:1])
    with channel(served) as opened:
        held = opened.unary_unary(f"{SERVICE}/ModelInfer").future(message.SerializeToString())
        until(lambda: samples(served)[depth] == 1)
        assert not held.done()
    until(lambda: samples(served)[depth] == 0)
    until(lambda: refusals(served, "slow", "caller_left") == before + 1)


@pytest.mark.parametrize("options", [{"client_timeout": 0.3}, {"timeout": 300_000}])
def test_a_deadline_that_the_client_chose_burns_no_error_budget(
    served: Service, asking: Any, options: dict[str, Any]
) -> None:
    reasons = ("client_deadline", "deadline_exceeded", "caller_left")
    before = [refusals(served, "slow", reason) for reason in reasons]
    with pytest.raises(InferenceServerException) as caught:
        asking.infer("slow", [images(FILES[0])], **options)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    until(lambda: refusals(served, "slow", reasons[0]) == before[0] + 1)
    assert [refusals(served, "slow", reason) for reason in reasons] == [before[0] + 1, *before[1:]]


def test_statistics_and_metrics_count_calls(served: Service, asking: Any) -> None:
    series = 'resnet_serve_requests_total{route="grpc ModelInfer",status="200"}'
    before = samples(served).get(series, 0.0)
    (first,) = asking.get_inference_statistics("tiny").model_stats
    asking.infer("tiny", [images(*FILES)])
    (second,) = asking.get_inference_statistics("tiny").model_stats
    assert second.inference_count - first.inference_count == 3
    assert second.inference_stats.compute_infer.ns > first.inference_stats.compute_infer.ns
    assert {each.name for each in asking.get_inference_statistics().model_stats} >= {NAME, "tiny"}
    after = samples(served)
    assert after[series] - before == 1
    assert after["resnet_serve_requests_in_flight"] == 1  # This one, which reads the metrics.


def test_models_are_loaded_and_unloaded_by_who_may(asking: Any, folder: Path) -> None:
    for change in (asking.load_model, asking.unload_model):
        with pytest.raises(InferenceServerException, match="a key is required") as caught:
            change("tiny")
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    fields = f'{{"spec": "{folder}/b.safetensors", "engine": "eager", "max_batch": 1}}'
    asking.load_model("tiny", headers=ADMIN_METADATA, config=fields)
    assert list(asking.get_model_metadata("tiny").outputs[0].shape) == [-1, 4]
    with pytest.raises(InferenceServerException, match="config: must be a JSON object"):
        asking.load_model("tiny", headers=ADMIN_METADATA, config="[]")
    with pytest.raises(InferenceServerException, match="never is not configured"):
        asking.load_model("never", headers=ADMIN_METADATA)
    asking.unload_model("tiny", headers=ADMIN_METADATA)
    assert not asking.is_model_ready("tiny")
    states = {each.name: each.state for each in asking.get_model_repository_index().models}
    assert (states[NAME], states["tiny"]) == ("READY", "UNAVAILABLE")
    asking.load_model("tiny", headers=ADMIN_METADATA)
    assert list(asking.get_model_metadata("tiny").outputs[0].shape) == [-1, 3]
    with pytest.raises(InferenceServerException, match="the default model") as caught:
        asking.unload_model(NAME, headers=ADMIN_METADATA)
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


def test_what_is_not_there_says_so(asking: Any) -> None:
    for ask in (
        asking.get_system_shared_memory_status,
        asking.get_cuda_shared_memory_status,
        asking.get_trace_settings,
        asking.get_log_settings,
        lambda: asking.register_system_shared_memory("a", "/a", 8),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        asking.get_system_shared_memory_status()


def test_reflection_teaches_a_client_everything(served: Service, asking: Any) -> None:
    """As grpcurl does: it lists, describes, and calls what it has never seen."""
    asked = reflection_pb2.ServerReflectionRequest
    with channel(served) as opened:
        stub = reflection_pb2_grpc.ServerReflectionStub(opened)

        def ask(message: Any) -> Any:
            (answer,) = stub.ServerReflectionInfo(iter([message]), timeout=PATIENCE)
            return answer

        listed = ask(asked(list_services="*")).list_services_response.service
        assert {each.name for each in listed} == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            *REFLECTIONS,
        }
        answer = ask(asked(file_containing_symbol="inference.GRPCInferenceService"))
        pool = descriptor_pool.DescriptorPool()
        for content in answer.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(content))
        method = pool.FindMethodByName("inference.GRPCInferenceService.ModelInfer")
        sent = message_factory.GetMessageClass(method.input_type)(model_name=NAME)
        given = sent.inputs.add(name="image", datatype="BYTES", shape=[3])
        given.contents.bytes_contents.extend(FILES)
        unary = opened.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            type(sent).SerializeToString,
            message_factory.GetMessageClass(method.output_type).FromString,
        )
        received = unary(sent, timeout=PATIENCE)
        assert ask(asked(file_containing_symbol="no.such")).error_response.error_code == 5
        for name in REFLECTIONS:
            reflect = opened.stream_stream(f"/{name}/ServerReflectionInfo")
            (answer,) = reflect(iter([asked(list_services="").SerializeToString()]))
            assert b"inference.GRPCInferenceService" in answer
            with pytest.raises(grpc.RpcError) as caught:
                list(reflect(iter([b"\xff"]), timeout=PATIENCE))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    rows = np.frombuffer(received.raw_output_contents[0], "<f4").reshape(3, CLASSES)
    same_probabilities(rows, probabilities(asking, images(*FILES)))


def test_health_is_that_of_the_service(served: Service) -> None:
    with channel(served) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        for name in ("", "inference.GRPCInferenceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=PATIENCE)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


GOOD = request("image", "BYTES", [1], bytes_contents=FILES[:1]).SerializeToString()
MODEL = field(1, NAME.encode())
IMAGE = field(1, b"image") + field(2, b"BYTES") + b"\x18\x01"


def hostile() -> Iterator[bytes]:
    """Messages that no client sends by chance, and some that it might."""
    noise = random.Random(5)
    for length in (0, 1, 2, 17, 1000, 40_000):
        yield noise.randbytes(length)
        yield MODEL + noise.randbytes(length)
    for end in range(0, len(GOOD), 97):
        yield GOOD[:end]
    for _ in range(40):
        damaged = bytearray(GOOD)
        for _ in range(3):
            damaged[noise.randrange(min(len(GOOD), 80))] = noise.randrange(256)
        yield bytes(damaged)
    yield MODEL + field(6, b"") * 10_000  # outputs
    yield MODEL + field(5, IMAGE) * 10_000  # inputs
    yield MODEL + field(5, IMAGE + field(5, field(8, b"") * 100_000))
    yield MODEL + field(5, IMAGE + field(4, b"") * 10_000)  # parameters
    yield MODEL + field(7, b"x") * 10_000
    yield MODEL + field(4, b"\x0a\x01a" * 30_000)
    yield field(1, b"\xff\xfe")
    yield MODEL + b"\x0b" * 1000  # groups
    yield MODEL + b"\xff" * 30
    yield MODEL + field(5, field(1, b"x" * 60_000))
    yield MODEL + field(5, IMAGE + b"\x18\x01" * 200)  # dimensions
    yield MODEL + field(5, IMAGE + b"\x18" + b"\xff" * 9 + b"\x01")
    yield MODEL + field(5, IMAGE.replace(b"BYTES", b"UINT8").replace(b"image", b"pixel"))
    yield MODEL + field(5, field(1, b"pixels") + field(2, b"UINT8") + b"\x18\x01") + field(7, b"")
    large = field(4, b"\x01" * 300_000)
    wide = field(1, b"pixels") + field(2, b"UINT8") + field(3, b"\x01\x20\x20\x03")
    yield MODEL + field(5, wide + field(5, large))
    yield MODEL + field(5, wide + field(5, field(4, b"\xff\xff\xff\xff\x0f" * 3072)))
    yield MODEL + field(5, wide + field(5, field(6, bytes(3072))))
    yield MODEL + field(5, wide + field(5, field(4, b"\x01" * 3072))) + field(7, bytes(3072))
    yield MODEL + field(5, wide) + field(7, bytes(3072)) * 2
    floats = field(1, b"input") + field(2, b"FP32") + field(3, b"\x01\x03\x20\x20")
    for value in (np.nan, np.inf, 1e38):
        yield MODEL + field(5, floats) + field(7, np.full(3072, value, "<f4").tobytes())
    yield GOOD + bytes(LIMIT)


def test_what_is_malformed_is_the_callers_fault(served: Service) -> None:
    allowed = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own answer to what is far too large
    }
    lines = len(served.log)
    counted = 0
    with channel(served) as opened:
        for content in hostile():
            error = None
            try:
                call(opened, "ModelInfer", content)
            except grpc.RpcError as caught:
                error = caught
            if error is not None:
                counted += 1
                assert error.code() in allowed, (content[:60], error)
                assert "\n" not in error.details()
        for content in (b"\xff", b"\x0b\x0b", field(1, b"\xff"), bytes(70_000)):
            for method in ("ServerLive", "ModelReady", "RepositoryIndex", "ModelStatistics"):
                with contextlib.suppress(grpc.RpcError):
                    call(opened, method, content)
                    continue
                assert refused(opened, method, content).code() in allowed
        assert raw_rows(call(opened, "ModelInfer", GOOD)).shape == (1, CLASSES)
        with pytest.raises(grpc.RpcError) as none:
            opened.stream_unary(f"{SERVICE}/ModelInfer")(iter([]), timeout=PATIENCE)
        assert none.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert counted > 60
    assert not [line for line in served.log[lines:] if "Traceback" in line or "ERROR" in line]


def test_what_is_too_large_is_refused(served: Service, asking: Any) -> None:
    with pytest.raises(InferenceServerException, match="the limit is") as caught:
        asking.infer(NAME, [images(bytes(LIMIT))])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="larger than max") as caught:
        asking.infer(NAME, [images(bytes(5 * LIMIT))])
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_bomb_is_refused_before_it_takes_its_memory(served: Service) -> None:
    def peak() -> int:
        """Of the front ends, in KiB."""
        return sum(
            int(line.split()[1])
            for pid in children(served, "front_end")
            for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
            if line.startswith("VmHWM")
        )

    with channel(served) as opened:
        call(opened, "ModelInfer", GOOD, compression=grpc.Compression.Gzip)
        before = peak()
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            bomb = bytes(400 * LIMIT)
            error = refused(opened, "ModelInfer", bomb, compression=compression)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "decompresses to more than" in error.details()
        assert peak() - before < 50 * 1024


def test_every_front_end_serves_and_a_new_one_takes_the_place_of_one_that_died(
    served: Service,
) -> None:
    def pids() -> set[int]:
        return set(children(served, "front_end"))

    def asked() -> None:
        with channel(served) as opened:
            assert raw_rows(call(opened, "ModelInfer", GOOD)).shape == (1, CLASSES)

    before = pids()
    assert len(before) == 2
    for _ in range(20):
        asked()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(pids()) == 2 and victim not in pids())
    address = address_of(served)
    port = int(address.rpartition(":")[2])
    until(lambda: len(listening(port)) == 2)
    for _ in range(20):
        asked()


def listening(port: int) -> list[str]:
    """The sockets that listen on a port, as proc_net_tcp has them; gRPC's are of IPv6."""
    lines = [
        line
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()[1:]
    ]
    return [line for line in lines if line.split()[1].endswith(f":{port:04X}") and " 0A " in line]
