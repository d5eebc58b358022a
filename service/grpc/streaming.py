"""ModelStreamInfer: each message is a request of its own, with a response or an error."""

from __future__ import annotations

import asyncio
from typing import Any

from service.errors import RETRY_SECONDS, NotReady, TooManyConnections
from service.grpc import protocol_table as table
from service.grpc.calls import Call
from service.grpc.descriptors import Descriptors
from service.grpc.receiving import Message
from service.grpc.servicing import InferenceMethods
from service.grpc.statuses import CallRefusal

# Requests of one stream that are in progress; responses keep the order of their requests.
MOST_OF_STREAM = 8


class InferStreams:
    """The streams of a process, each of which may wait for its client as long as that likes."""

    def __init__(self, methods: InferenceMethods, protocol: Descriptors) -> None:
        self._methods = methods
        self._calls = methods.calls
        self._response = protocol[f"{table.STREAM}Response"]
        self._most = methods.calls.services.settings.grpc_max_streams
        self._count = 0
        self._waiting: set[Message] = set()

    def close(self) -> None:
        """Ends streams, each after the responses to what has arrived."""
        for message in self._waiting:
            message.end(closing())

    async def serve(self, context: Any) -> None:
        """Serves one stream until its client ends it."""
        stream = self._calls.begin(context, table.STREAM)
        outcome = await self._calls.outcome(stream, self._serve)
        trailers = (("x-request-id", stream.request_id.decode("ascii")),)
        if isinstance(outcome, CallRefusal):
            await context.abort(outcome.code, outcome.text, (*trailers, *outcome.trailers))
        context.set_trailing_metadata(trailers)

    async def _serve(self, stream: Call) -> bytes:
        services = stream.services
        services.keys.authorize(stream.headers)
        services.pipeline.check_open()
        if self._count >= self._most:
            raise TooManyConnections(
                f"the limit of {self._most} open streams is reached; close some, or use ModelInfer",
                RETRY_SECONDS,
            )
        self._count += 1
        responses: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MOST_OF_STREAM)
        try:
            async with asyncio.TaskGroup() as group:
                receiving = group.create_task(self._receive(stream, group, responses))
                group.create_task(self._respond(stream.context, responses))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._count -= 1
        if not receiving.result():
            raise closing()
        return b""

    async def _receive(
        self,
        stream: Call,
        group: asyncio.TaskGroup,
        responses: asyncio.Queue[asyncio.Task[bytes] | None],
    ) -> bool:
        """Whether the client ended the stream, not this service."""
        most = stream.services.settings.max_batch_body_bytes
        while not self._calls.stopping:
            message = Message(stream.receiving, most)
            self._waiting.add(message)
            try:
                body = await message.read(stream.context, may_pause=True)
            except NotReady:
                break
            finally:
                self._waiting.discard(message)
            if body is None:
                await responses.put(None)
                return True
            work = self._answer(self._calls.next_of(stream), message, body)
            await responses.put(group.create_task(work))
        await responses.put(None)
        return False

    async def _respond(
        self, context: Any, responses: asyncio.Queue[asyncio.Task[bytes] | None]
    ) -> None:
        """Writes responses in the order of their requests."""
        while (task := await responses.get()) is not None:
            response = await task
            with self._calls.unread.within(context):
                await context.write(response)

    async def _answer(self, call: Call, message: Message, body: bytes) -> bytes:
        """A response or an error, as a ModelStreamInferResponse."""

        async def answer(call: Call) -> bytes:
            call.services.keys.authorize(call.headers)  # A key may have been revoked meanwhile.
            message.count(body)
            return await self._methods.inferred(call, body, self._encode)

        with message:
            outcome = await self._calls.outcome(call, answer)
        if isinstance(outcome, CallRefusal):
            return self._encoded(error_message=outcome.text)
        return outcome

    def _encode(self, *answer: Any) -> bytes:
        return self._encoded(infer_response=self._methods.messages.response(*answer))

    def _encoded(self, **fields: Any) -> bytes:
        content: bytes = self._response(**fields).SerializeToString()
        return content


def closing() -> NotReady:
    return NotReady("the service is shutting down; open the stream again", RETRY_SECONDS)
