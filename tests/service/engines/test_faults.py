from __future__ import annotations

import pytest
import torch

from service.engines import faults
from service.engines.faults import CaptureFailed


@pytest.mark.parametrize(
    ("text", "no_memory", "poisons"),
    [
        ("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: "
         "you tried to allocate 70368744177664 bytes.", True, False),
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True, False),
        ("Exception from src/inference/src/infer_request.cpp:223:\nstd::bad_alloc", True, False),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("CUDA driver error: unspecified launch failure", False, True),
        ("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA", False, True),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", False, True),
        ("CUDA error: uncorrectable NVLink error detected during the execution", False, True),
        ("The NVIDIA driver on your system is too old (found version 12040). CUDA driver version "
         "is insufficient for CUDA runtime version", False, True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False, True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True, False),
        ("FIND was unable to find an engine to execute this computation", True, False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False, False),
        ("captures_underway.empty() INTERNAL ASSERT FAILED at "
         "\"/pytorch/c10/cuda/CUDACachingAllocator.cpp\":4116, please report a bug", False, True),
        ("CUDA error: operation failed due to a previous error during capture", False, True),
        ("run_func_( container_handle_, input_handles.data(), input_handles.size()) API call "
         "failed at /pytorch/torch/csrc/inductor/aoti_runner/model_container_runner.cpp, line 151",
         True, False),
        ("CUDA error: invalid configuration argument", False, False),
        ("mat1 and mat2 shapes cannot be multiplied", False, False),
        ("an unknown error", False, False),
    ],
)  # fmt: skip
def test_what_a_failure_means(text: str, no_memory: bool, poisons: bool) -> None:
    error = RuntimeError(text)
    assert faults.out_of_memory(error) is no_memory
    assert faults.poisons(error) is poisons
    assert "\n" not in faults.in_one_line(error)


def test_what_torch_says_when_there_is_no_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert faults.out_of_memory(raised.value)
    assert not faults.out_of_memory(ValueError("out of memory"))


def accelerator_error(text: str, code: int) -> BaseException:
    """As torch raises it for CUDA's error `code`."""
    error: BaseException = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("code", "no_memory", "poisons"),
    [(2, True, False), (700, False, True), (719, False, True), (901, False, True),
     (100, False, True), (9, False, False), (701, False, False), (400, False, False)],
)  # fmt: skip
def test_a_cuda_errors_number_says_what_it_means(code: int, no_memory: bool, poisons: bool) -> None:
    error = accelerator_error("CUDA error: in other words", code)
    assert faults.out_of_memory(error) is no_memory
    assert faults.poisons(error) is poisons


def test_an_older_torch_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    error = accelerator_error("CUDA error: misaligned address", 1)
    assert not faults.poisons(error)
    monkeypatch.delattr(torch, "AcceleratorError")
    assert faults.poisons(error)


def test_each_text_is_known_without_its_number() -> None:
    for text in faults.POISON.values():
        assert faults.poisons(RuntimeError(f"CUDA error: {text.upper()}\nCompile with")), text


def test_a_failed_capture_poisons_also_as_a_cause() -> None:
    capture = CaptureFailed("out of memory for a batch of 64")
    assert faults.poisons(capture)
    assert not faults.out_of_memory(capture)
    wrapped = ValueError("the engine was not built")
    wrapped.__cause__ = capture
    assert faults.poisons(wrapped)
