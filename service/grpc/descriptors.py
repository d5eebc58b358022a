"""Message classes made of the tables, without generated code.

They live in a pool of their own: generated code for the same package, as clients have it, registers
in the default pool, where a second definition of a message is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from service.grpc import protocol_table as table

FIELD = re.compile(r"(\w+):(\{)?([\w.]+)\}?(\*)?(?:\|(\w+))?=(\d+)")
Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    name: getattr(Field, f"TYPE_{name.upper()}")
    for name in ("double", "float", "int64", "uint64", "int32", "bool", "string", "bytes", "uint32")
}


class Descriptors:
    """All messages of a pool, by full name; `services`: the full names of its services."""

    def __init__(self) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        self.services: list[str] = []
        inference = file_of(table.INFERENCE, table.INFERENCE_MESSAGES, table.INFERENCE_ENUMERATIONS)
        service = inference.service.add(name=table.INFERENCE_SERVICE)
        for method in table.METHODS:
            add_method(service, table.INFERENCE, method, f"{method}Request", f"{method}Response")
        add_method(
            service, table.INFERENCE, table.STREAM, "ModelInferRequest", f"{table.STREAM}Response"
        )
        service.method[-1].client_streaming = service.method[-1].server_streaming = True
        health = file_of(table.HEALTH, table.HEALTH_MESSAGES, table.HEALTH_ENUMERATIONS)
        service = health.service.add(name=table.HEALTH_SERVICE)
        for method in ("Check", "Watch"):
            add_method(service, table.HEALTH, method, "HealthCheckRequest", "HealthCheckResponse")
        service.method[-1].server_streaming = True
        for file in (inference, health):
            self.pool.Add(file)
            self.services += [f"{file.package}.{service.name}" for service in file.service]
        self._classes: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The class of a message of the package `inference`, or of a full name."""
        found = self._classes.get(name)
        if found is None:
            full = name if name.startswith(table.HEALTH) else f"{table.INFERENCE}.{name}"
            descriptor = self.pool.FindMessageTypeByName(full)
            found = self._classes[name] = message_factory.GetMessageClass(descriptor)
        return found


def file_of(package: str, messages: str, enumerations: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of a package's file."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3"
    )
    made: dict[str, Any] = {"": file}

    def place(name: str) -> tuple[Any, str]:
        outer, _, own = name.rpartition(".")
        return made[outer], own

    for name, *fields in lines_of(messages):
        outer, own = place(name)
        nested = outer.message_type if outer is file else outer.nested_type
        made[name] = nested.add(name=own)
        for field in fields:
            add_field(made[name], f".{package}.", name, field)
    for name, *values in lines_of(enumerations):
        outer, own = place(name)
        enumeration = outer.enum_type.add(name=own)
        for number, value in enumerate(values):
            enumeration.value.add(name=value, number=number)
    kinds = {f".{package}.{name}" for name, *_ in lines_of(enumerations)}
    for message in made.values():
        if message is not file:
            for field in message.field:
                if field.type_name in kinds:
                    field.type = Field.TYPE_ENUM
    return file


def lines_of(text: str) -> Iterator[list[str]]:
    """The words of each line, with those of the indented lines that follow it."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith(" ") and words:
            yield words
            words = []
        words += line.split()
    if words:
        yield words


def add_field(message: Any, package: str, name: str, text: str) -> None:
    match = FIELD.fullmatch(text)
    assert match, text
    field_name, in_map, kind, repeated, oneof, number = match.groups()
    field = message.field.add(
        name=field_name,
        number=int(number),
        label=Field.LABEL_REPEATED if repeated or in_map else Field.LABEL_OPTIONAL,
    )
    if in_map:
        entry = f"{field_name.title().replace('_', '')}Entry"
        values = message.nested_type.add(name=entry)
        values.options.map_entry = True
        add_field(values, package, name, "key:string=1")
        add_field(values, package, name, f"value:{kind}=2")
        kind = f"{name}.{entry}"
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = Field.TYPE_MESSAGE, package + kind
    if oneof:
        if oneof not in [each.name for each in message.oneof_decl]:
            message.oneof_decl.add(name=oneof)
        field.oneof_index = [each.name for each in message.oneof_decl].index(oneof)


def add_method(service: Any, package: str, name: str, request: str, response: str) -> None:
    service.method.add(
        name=name, input_type=f".{package}.{request}", output_type=f".{package}.{response}"
    )
