"""The protocol's responses in JSON, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Shape = list[int]


class V2Error(BaseModel):
    error: str


class V2Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class V2Live(BaseModel):
    live: bool
    error: str = Field("", description="why not")


class V2Ready(BaseModel):
    ready: bool
    error: str = Field("", description="why not")


class V2ModelReady(BaseModel):
    name: str
    ready: bool


class V2TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: Shape = Field(description="-1: the number of images")
    parameters: dict[str, Any] = Field(
        {},
        description="of an input: its layouts, and how images are prepared for it, as in GET "
        "/v1/models; of the probabilities: the labels, in their order",
    )


class V2ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[V2TensorMetadata] = Field(description="alternatives: a request sends one")
    outputs: list[V2TensorMetadata]
    parameters: dict[str, str] = Field(
        description="channels: their order in tensors; outputs: whether classes are exclusive or "
        "independent"
    )


class V2ConfigInput(BaseModel):
    name: str
    data_type: str
    format: str
    dims: Shape
    optional: bool


class V2ConfigOutput(BaseModel):
    name: str
    data_type: str
    dims: Shape


class V2ConfigParameter(BaseModel):
    string_value: str


class V2ModelConfig(BaseModel):
    """The part of Triton's ModelConfig that applies."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int = Field(description="images in one request")
    input: list[V2ConfigInput]
    output: list[V2ConfigOutput]
    instance_group: list[dict[str, Any]]
    dynamic_batching: dict[str, Any]
    parameters: dict[str, V2ConfigParameter] = Field(
        description="engine, precision, channels and outputs; labels: a JSON list"
    )


class V2Duration(BaseModel):
    count: int
    ns: int


class V2BatchStatistics(BaseModel):
    batch_size: int
    compute_input: V2Duration
    compute_infer: V2Duration
    compute_output: V2Duration


class V2ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970; 0: none")
    inference_count: int
    execution_count: int
    inference_stats: dict[str, V2Duration]
    batch_stats: list[V2BatchStatistics]


class V2Statistics(BaseModel):
    model_stats: list[V2ModelStatistics]


class V2ResponseOutput(BaseModel):
    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: Shape
    data: list[float] | list[str] | None = Field(
        None,
        description="the tensor in row-major order, or the classes as VALUE:INDEX:LABEL; omitted "
        "if it is binary",
    )
    parameters: dict[str, Any] = Field({}, description="binary_data_size, if it is binary")


class V2InferenceResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = Field(None, description="that of the request; omitted if it has none")
    outputs: list[V2ResponseOutput]


class V2RepositoryModel(BaseModel):
    name: str
    version: str
    state: str = Field(description="READY, LOADING or UNAVAILABLE")
    reason: str
