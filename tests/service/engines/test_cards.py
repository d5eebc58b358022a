"""Start-up checks of CUDA devices, with the texts of torch's `c10/cuda/CUDAFunctions.cpp`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from service.config.settings import ModelSettings
from service.engines import cards
from service.engines.devices import devices_of
from service.errors import ConfigError

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: "
    "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to "
    "install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed "
    "a driver from http://www.nvidia.com/Download/index.aspx"
)
MISMATCH = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error 803: system has unsupported "
    "display driver / cuda driver combination"
)
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Makes torch one for CUDA, on a host whose driver says `error`, or nothing."""

    def make(
        error: str = "",
        cuda: str | None = "13.0",
        capability: tuple[int, int] = (9, 0),
        built: list[str] = CUDA_13,
    ) -> None:
        def init() -> None:
            warnings.warn(f"CUDA initialization: {error or 'found GPU0'}", stacklevel=1)
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "init", init)
        # By the management library, whatever CUDA itself says.
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")

    return make


def devices(device: str | list[str]) -> list[str]:
    return devices_of(ModelSettings(spec="x", device=device))


@pytest.mark.parametrize("device", ["auto", "cuda:0", ["cpu", "cuda:0"]])
def test_a_driver_that_is_too_old_is_told_in_one_line(device: str, host: Host) -> None:
    host(TOO_OLD)
    with pytest.raises(ConfigError) as raised:
        devices(device)
    assert str(raised.value) == (
        "device: the NVIDIA driver (12.4) is too old for this PyTorch, which was built for CUDA "
        "13.0; update the driver, or install a PyTorch for an older CUDA: docs/guides/gpu-host.md"
    )


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_no_silent_cpu(device: str, host: Host) -> None:
    host(f"{MISMATCH}\nException raised from device_count_impl")
    with pytest.raises(ConfigError) as raised:
        devices(device)
    said = str(raised.value)
    assert said.startswith("device: there is a GPU, but it cannot be used: Unexpected error from")
    assert said.endswith("combination; repair it, or use cpu: docs/guides/gpu-host.md")


@pytest.mark.parametrize("error", [NO_DRIVER, "No CUDA GPUs are available"])
def test_without_a_gpu_auto_is_the_cpu(error: str, host: Host) -> None:
    host(error)
    assert devices("auto") == ["cpu"]
    with pytest.raises(ConfigError, match="cuda:0 is not available, torch sees 0 CUDA devices"):
        devices("cuda:0")


def test_a_broken_gpu_does_not_matter_on_the_cpu(host: Host) -> None:
    host(TOO_OLD)
    assert devices("cpu") == ["cpu"]


def test_a_torch_without_cuda_says_so(host: Host) -> None:
    host(cuda=None)
    assert devices("auto") == ["cpu"]
    with pytest.raises(ConfigError, match="this PyTorch has no CUDA support; use cpu, or install"):
        devices("cuda:0")


def test_a_card_that_torch_has_no_code_for_is_told_in_one_line(host: Host) -> None:
    host(capability=(7, 0))
    with pytest.raises(ConfigError) as raised:
        devices("auto")
    assert str(raised.value) == (
        "device: this PyTorch has no code for cuda:0, a Tesla V100 of compute capability 7.0, but "
        "for sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, compute_120; install a PyTorch that has, "
        "or use cpu: docs/guides/gpu-host.md"
    )


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_100f"], (11, 0), False),
        (["compute_80"], (12, 1), True),
        (["compute_90a"], (10, 0), False),
        (["compute_90"], (8, 9), False),
        (["gfx90a"], (9, 0), True),  # ROCm's, which is not judged.
        ([], (9, 0), True),
    ],
)
def test_code_runs_on_newer_processors_of_its_family_and_ptx_on_all_newer_ones(
    built: list[str], capability: tuple[int, int], runs: bool, host: Host
) -> None:
    host(capability=capability, built=built)
    if runs:
        cards.check("cuda:0")
    else:
        with pytest.raises(ConfigError, match="has no code for"):
            cards.check("cuda:0")


def test_compile_and_openvino_are_for_the_cpu(host: Host) -> None:
    host()
    for engine in ("compile", "openvino"):
        with pytest.raises(ConfigError, match=f"engine: {engine} runs on the CPU, not on cuda:0"):
            devices_of(ModelSettings(spec="x", device="cuda", engine=engine))
    assert devices("auto") == ["cuda:0"]
