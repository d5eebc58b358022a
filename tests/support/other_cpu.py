"""`python -m tests.support.other_cpu COMMAND...` runs COMMAND as on the other kind of CPU: without
bf16 where this one has it, and with it where this one has none.

What the project chooses by `models.processor`, which says so to all of COMMAND's processes. Without
bf16, oneDNN, in torch and in OpenVINO, leaves out what came with it, so bf16 that a test asks for
is emulated; so it is where the CPU has none.
"""

from __future__ import annotations

import os
import sys

from models import processor

# With AVX512-BF16, AMX or FP16 came everything after this; older CPUs are below it anyway.
BEFORE_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
# Instructions that came after bf16, so that no CPU has them without it.
LATER = ("amx", "avx512_fp16", "avx512_bf16", "bf16", "i8mm", "sve2", "svebf16")


def environment(flags: tuple[str, ...]) -> dict[str, str]:
    """What makes a CPU with `flags` pass for the other kind."""
    if processor.BF16.isdisjoint(flags):
        return {processor.VARIABLE: " ".join((*flags, "avx512_bf16"))}
    older = " ".join(flag for flag in flags if not flag.startswith(LATER))
    return {processor.VARIABLE: older, **BEFORE_BF16}


def main(*command: str) -> None:
    other = environment(processor.flags())
    kind = "without bf16" if BEFORE_BF16.items() <= other.items() else "with bf16, emulated"
    print(f"As on a CPU {kind}: {processor.model()}", flush=True)
    os.execvpe(command[0], command, os.environ | other)


if __name__ == "__main__":
    main(*sys.argv[1:])
