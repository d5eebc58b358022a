"""Health checking (grpc.health.v1) and server reflection, which need no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.errors import RETRY_SECONDS, TooManyConnections, UnknownModel
from service.grpc import protocol_table as table
from service.grpc.calls import Call, Calls
from service.grpc.descriptors import Descriptors
from service.grpc.infer_messages import InferMessages, parsed
from service.grpc.receiving import Message
from service.grpc.statuses import CallRefusal

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
# Two names of one protocol, whose messages are the same on the wire.
REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
SERVICES = ("", f"{table.INFERENCE}.{table.INFERENCE_SERVICE}")
# Between two looks of a watch: a change is told within this time.
LOOK_SECONDS = 0.1
# Watches and reflection streams of a process, which last as long as their clients like.
MOST_OBSERVERS = 64
MAX_BYTES = 2**14


class Observers:
    """Answers who asks about the service itself."""

    def __init__(self, calls: Calls, protocol: Descriptors) -> None:
        self._calls = calls
        self._messages = InferMessages(protocol)
        self._response = protocol[f"{table.HEALTH}.HealthCheckResponse"]
        names = [*protocol.services, *REFLECTION_SERVICES]
        self._reflection = reflection.aio.ReflectionServicer(names, protocol.pool)
        self._count = 0

    def _status(self, service: str) -> int:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return NOT_SERVING if self._calls.services.pipeline.unready() else SERVING

    async def _asked(self, call: Call) -> str:
        deadline = asyncio.get_running_loop().time() + call.within()[0]
        with Message(self._calls.receiving, MAX_BYTES) as message:
            body = await message.read_one(call.context, deadline)
        service: str = self._messages.parse(f"{table.HEALTH}.HealthCheckRequest", body).service
        return service

    async def check(self, context: Any) -> bytes:
        async def answer(call: Call) -> bytes:
            status = self._status(await self._asked(call))
            if status == SERVICE_UNKNOWN:
                raise UnknownModel(f"no such service; leave it empty, or send {SERVICES[1]}")
            return self._encode(status)

        return await self._calls.unary(context, "Check", answer)

    def _encode(self, status: int) -> bytes:
        content: bytes = self._response(status=status).SerializeToString()
        return content

    async def watch(self, context: Any) -> None:
        async def answer(call: Call) -> bytes:
            service, told = await self._asked(call), None
            while True:
                status = self._status(service)
                if status != told:
                    with self._calls.unread.within(context):
                        await context.write(self._encode(status))
                    told = status
                if self._calls.stopping:
                    return b""
                await asyncio.sleep(LOOK_SECONDS)

        await self._observe(context, "Watch", answer)

    async def reflect(self, context: Any) -> None:
        async def requests() -> AsyncIterator[Any]:
            while True:
                with Message(self._calls.receiving, MAX_BYTES) as message:
                    body = await message.read(context)
                if body is None:
                    return
                yield parsed(reflection_pb2.ServerReflectionRequest, body)

        async def answer(call: Call) -> bytes:
            async for response in self._reflection.ServerReflectionInfo(requests(), context):
                with self._calls.unread.within(context):
                    await context.write(response.SerializeToString())
            return b""

        await self._observe(context, "ServerReflectionInfo", answer)

    async def _observe(self, context: Any, method: str, answer: Any) -> None:
        async def limited(call: Call) -> bytes:
            if self._count >= MOST_OBSERVERS:
                raise TooManyConnections(
                    f"{MOST_OBSERVERS} clients watch or reflect already; retry later", RETRY_SECONDS
                )
            self._count += 1
            try:
                content: bytes = await answer(call)
            finally:
                self._count -= 1
            return content

        outcome = await self._calls.outcome(self._calls.begin(context, method), limited)
        if isinstance(outcome, CallRefusal):
            await context.abort(outcome.code, outcome.text, outcome.trailers)
