"""Which parameter type a device computes in."""

from functools import cache
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float32"]
"""As the configuration says it (`model.dtype`)."""

_CPU_INFO = Path("/proc/cpuinfo")
_FEATURE_LINES = ("flags", "Features")
"""On x86 and on ARM."""
_NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def parameter_type(dtype: Dtype, *, on_gpu: bool) -> Literal["bfloat16", "float32"]:
    """The type that a model is loaded in.

    Args:
        dtype: the configured one; `auto` is bfloat16 on GPUs and on CPUs that multiply in it, else
            float32: emulated bfloat16 products took 9 to 140 times as long on an AVX2 machine.
        on_gpu: whether the model is on a GPU; otherwise this machine's CPU decides.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_gpu or has_native_bfloat16() else "float32"


def has_native_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 matrices itself."""
    return not _NATIVE_BFLOAT16.isdisjoint(cpu_features())


@cache
def cpu_features() -> frozenset[str]:
    """The CPU's features as Linux names them; empty where it does not say."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith(_FEATURE_LINES)), "")
    return frozenset(line.partition(":")[2].split())
