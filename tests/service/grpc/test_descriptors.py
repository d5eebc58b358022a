"""The tables against the generated code of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from service.grpc.descriptors import Descriptors

OURS = Descriptors()
# Options of Triton that its models have and ours do not, and settings of its own servers.
PARTLY = {
    "ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy", "ModelInstanceGroup",
    "ModelDynamicBatching", "ModelStatistics", "TraceSettingRequest", "TraceSettingResponse",
    "LogSettingsRequest", "LogSettingsResponse", "SystemSharedMemoryStatusResponse",
    "CudaSharedMemoryStatusResponse",
}  # fmt: skip


def messages(file: Any) -> Iterator[Any]:
    waiting = [*file.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        yield message
        waiting += message.nested_types


def facts(message: Any) -> dict[str, Any]:
    """What is sent of a message: numbers, types, labels, oneofs and maps, by field."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type and field.message_type.full_name,
            field.message_type and field.message_type.GetOptions().map_entry,
            field.enum_type and [(each.name, each.number) for each in field.enum_type.values],
            field.containing_oneof and field.containing_oneof.name,
        )
        for field in message.fields
    }


@pytest.mark.parametrize(
    ("file", "theirs"),
    [
        ("inference.proto", [service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR]),
        ("grpc/health/v1.proto", [health_pb2.DESCRIPTOR]),
    ],
)
def test_the_tables_are_the_protocols(file: str, theirs: list[Any]) -> None:
    known = {each.full_name: each for other in theirs for each in messages(other)}
    ours = [*messages(OURS.pool.FindFileByName(file))]
    assert len(ours) > 1
    for message in ours:
        told, other = facts(message), facts(known[message.full_name])
        if message.name in PARTLY:
            assert told.items() <= other.items(), message.full_name
        else:
            assert told == other, message.full_name


def methods(service: Any) -> list[Any]:
    proto = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(proto)
    return sorted(
        (
            each.name, each.input_type, each.output_type,
            each.client_streaming, each.server_streaming,
        )
        for each in proto.method
    )  # fmt: skip


def test_the_services_have_all_methods() -> None:
    theirs = {
        "inference.GRPCInferenceService": service_pb2,
        "grpc.health.v1.Health": health_pb2,
    }
    assert OURS.services == list(theirs)
    for name, module in theirs.items():
        other = module.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
        assert methods(OURS.pool.FindServiceByName(name)) == methods(other)


def test_both_definitions_live_in_one_process() -> None:
    """Also if ours comes first: it is in no pool that others see."""
    sent = service_pb2.ModelInferRequest(model_name="a", raw_input_contents=[b"x"])
    sent.parameters["timeout"].int64_param = 3
    received = OURS["ModelInferRequest"].FromString(sent.SerializeToString())
    assert received.model_name == "a"
    assert received.parameters["timeout"].int64_param == 3
    assert type(received) is not type(sent)
