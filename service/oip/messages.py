"""The protocol's requests in JSON; unknown fields and parameters are ignored."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.config.sources import shown
from service.config.wording import in_words
from service.errors import QUOTED, InvalidInput

M = TypeVar("M", bound=BaseModel)

# Generous limits on lists of inputs and outputs, and on shapes.
MAX_TENSORS = 16
MAX_DIMENSIONS = 8
MAX_TIMEOUT_MICROSECONDS = 3_600_000_000

Dimension = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Lenient(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class InputParameters(Lenient):
    """`binary_data_size`: bytes of the tensor after the JSON; without it, `data` has it."""

    binary_data_size: int | None = Field(None, ge=0)
    shared_memory_region: Any = None


class Input(Lenient):
    name: str = Field(max_length=QUOTED)
    datatype: str = Field(max_length=QUOTED)
    shape: list[Dimension] = Field(min_length=1, max_length=MAX_DIMENSIONS)
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(Lenient):
    """`classification`: return so many top classes instead of the tensor."""

    classification: int | None = Field(None, ge=1)
    binary_data: bool | None = None
    shared_memory_region: Any = None


class Output(Lenient):
    name: str = Field(max_length=QUOTED)
    parameters: OutputParameters = OutputParameters()


class Parameters(Lenient):
    """`timeout`: microseconds, 0 for the service's default; `priority`: 1 is the highest, 0 is the
    default."""

    timeout: int = Field(0, ge=0, le=MAX_TIMEOUT_MICROSECONDS)
    priority: int = Field(0, ge=0, le=2**63 - 1)
    binary_data_output: bool = False
    sequence_id: int | str = 0


class InferenceRequest(Lenient):
    id: str | None = None
    inputs: list[Input] = Field(max_length=MAX_TENSORS)
    outputs: list[Output] = Field([], max_length=MAX_TENSORS)
    parameters: Parameters = Parameters()


class RepositoryIndex(Lenient):
    ready: bool = False


class RepositoryChange(Lenient):
    parameters: dict[str, Any] = {}


def parse(kind: type[M], text: bytes) -> M:
    """Parses a message.

    Raises:
        InvalidInput: it is not JSON, or a field is invalid.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(error) from None


def validated(kind: type[M], fields: dict[str, Any]) -> M:
    """A message of fields that did not come as JSON; raises as `parse` does."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False)[0]
    location = shown(first["loc"])
    detail = f"{location}: {in_words(first)}" if location else f"the body {in_words(first)}"
    return InvalidInput(detail[: 2 * QUOTED])
