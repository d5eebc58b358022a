"""The methods of GRPCInferenceService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from service.errors import InvalidInput
from service.grpc import protocol_table as table
from service.grpc.calls import Call, Calls
from service.grpc.descriptors import Descriptors
from service.grpc.infer_messages import InferMessages, value_of
from service.grpc.receiving import Message
from service.grpc.statuses import Unsupported
from service.http.admission import admit_call
from service.http.admitted import AdmittedInference
from service.http.routers.models import MAX_BODY_BYTES, active_pipeline
from service.http.routers.v2 import LARGE_BYTES, settings_to_load
from service.inference.deadline import before
from service.inference.interfaces import Model
from service.inference.labels import shown_labels
from service.oip import codec, metadata
from service.oip.statistics import statistics


class Method(NamedTuple):
    """How a method is answered: `answer` takes a call and its message, and returns the fields of
    the response. `open`: without a key; `admin`: with an admin key only."""

    answer: Callable[[Call, Any], Awaitable[dict[str, Any]]]
    open: bool = False
    admin: bool = False


class InferenceMethods:
    """Answers calls in the terms of the service."""

    def __init__(self, calls: Calls, protocol: Descriptors) -> None:
        self.calls = calls
        self.messages = InferMessages(protocol)
        self._protocol = protocol
        self._services = calls.services
        self.table = {
            "ServerLive": Method(self._live, open=True),
            "ServerReady": Method(self._ready, open=True),
            "ModelReady": Method(self._model_ready),
            "ServerMetadata": Method(self._server_metadata),
            "ModelMetadata": Method(self._model_metadata),
            "ModelConfig": Method(self._configuration),
            "ModelStatistics": Method(self._statistics),
            "RepositoryIndex": Method(self._index),
            "RepositoryModelLoad": Method(self._load, admin=True),
            "RepositoryModelUnload": Method(self._unload, admin=True),
            **{
                name: Method(self._unsupported)
                for name in table.METHODS
                if "SharedMemory" in name or "Setting" in name
            },
        }

    async def unary(self, name: str, context: Any) -> bytes:
        """The response of a method of `table`, or of ModelInfer."""
        answer = self._infer if name == "ModelInfer" else self._plain
        return await self.calls.unary(context, name, answer)

    async def _plain(self, call: Call) -> bytes:
        method = self.table[call.method]
        if not method.open:
            self._services.keys.authorize(call.headers, admin=method.admin)
        deadline = asyncio.get_running_loop().time() + call.within()[0]
        with Message(self.calls.receiving, MAX_BODY_BYTES) as message:
            body = await message.read_one(call.context, deadline)
        request = self.messages.parse(f"{call.method}Request", body)
        response = self._protocol[f"{call.method}Response"](**await method.answer(call, request))
        content: bytes = response.SerializeToString()
        return content

    async def _infer(self, call: Call) -> bytes:
        self._services.keys.authorize(call.headers)
        self._services.pipeline.check_open()
        deadline = asyncio.get_running_loop().time() + call.within()[0]
        most = self._services.settings.max_batch_body_bytes
        with Message(self.calls.receiving, most) as message:
            body = await message.read_one(call.context, deadline)
            return await self.inferred(call, body, self.messages.encode)

    async def inferred(self, call: Call, body: bytes, encode: Callable[..., bytes]) -> bytes:
        """The response to a ModelInferRequest."""
        loop, record, services = asyncio.get_running_loop(), call.record, self._services
        record.received = time.perf_counter()
        outline = self.messages.outline(body)
        within, chosen = call.within()
        arrived = loop.time() - (time.perf_counter() - record.started)
        admission = admit_call(services, record, outline.head.model_name, within)
        serving = admission.model
        metadata.check_version(serving, outline.head.model_version)
        source = (serving.input, services.settings.max_batch_images)
        inference = AdmittedInference(admission, record, call.headers, arrived, chosen)
        with serving.users:
            if len(body) < LARGE_BYTES:
                parsed = self.messages.read(outline, *source)
            else:
                async with before(admission.deadline):
                    parsed = await services.lane.run(self.messages.read, outline, *source)
            del outline, body
            parsed, computing = inference.begin(parsed)
            rows = await computing
        return await inference.format(parsed, rows, encode)

    def _model(self, request: Any) -> Model:
        model = self._services.pipeline.find(request.name)
        metadata.check_version(model, request.version)
        return model

    async def _live(self, call: Call, request: Any) -> dict[str, Any]:
        return {"live": not self._services.pipeline.repository.dead()}

    async def _ready(self, call: Call, request: Any) -> dict[str, Any]:
        return {"ready": not self._services.pipeline.unready()}

    async def _model_ready(self, call: Call, request: Any) -> dict[str, Any]:
        """As Triton does, false for a model that is unknown."""
        pipeline = self._services.pipeline
        known = request.name in pipeline.models and request.version in ("", codec.VERSION)
        return {"ready": known and request.name not in pipeline.unready()}

    async def _server_metadata(self, call: Call, request: Any) -> dict[str, Any]:
        return metadata.server()

    async def _model_metadata(self, call: Call, request: Any) -> dict[str, Any]:
        fields = metadata.metadata(self._model(request))
        del fields["parameters"]  # Variants of the protocol disagree about the field's type.
        for tensor in (*fields["inputs"], *fields["outputs"]):
            tensor.pop("parameters", None)
        return fields

    async def _configuration(self, call: Call, request: Any) -> dict[str, Any]:
        model, settings = self._model(request), self._services.settings
        labels = shown_labels(model.labels, None)
        work = partial(metadata.configuration, model, settings, labels)
        return {"config": await self._services.format(len(labels or ()), work)}

    async def _statistics(self, call: Call, request: Any) -> dict[str, Any]:
        names = [self._model(request).name] if request.name else [*self._services.pipeline.models]
        counted = await self._services.exposition.counted()
        return {"model_stats": [statistics(name, counted.get(name, {})) for name in names]}

    async def _index(self, call: Call, request: Any) -> dict[str, Any]:
        pipeline, settings = self._services.pipeline, self._services.settings
        return {"models": metadata.index(pipeline, settings, only_ready=request.ready)}

    async def _load(self, call: Call, request: Any) -> dict[str, Any]:
        pipeline = active_pipeline(self._services)
        parameters = {name: value_of(value) for name, value in request.parameters.items()}
        settings = await self._services.lane.run(
            settings_to_load, self._services, model_name(request), parameters
        )
        await pipeline.repository.put(settings)
        return {}

    async def _unload(self, call: Call, request: Any) -> dict[str, Any]:
        pipeline = active_pipeline(self._services)
        await pipeline.repository.delete(model_name(request))
        return {}

    async def _unsupported(self, call: Call, request: Any) -> dict[str, Any]:
        if "SharedMemory" in call.method:
            raise Unsupported(codec.SHARED_MEMORY)
        raise Unsupported("traces and the log are set in the service's settings, not by calls")


def model_name(request: Any) -> str:
    """Raises `InvalidInput`: the request names none."""
    if not request.model_name:
        raise InvalidInput("model_name: name the model")
    name: str = request.model_name
    return name
