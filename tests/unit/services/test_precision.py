"""The parameter type follows the device, unless the configuration names one."""

import pytest

from services import precision
from services.precision import cpu_features, parameter_type

X86_WITH = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 sha_ni\n"
X86_WITHOUT = "processor\t: 0\nflags\t\t: fpu avx2 sha_ni\n"
X86_WIDE_WITHOUT = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
ARM_WITH = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU part\t: 0xd4f\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPU_INFO", file)
    cpu_features.cache_clear()
    yield file.write_text
    cpu_features.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86_WITH, "bfloat16"),
        (X86_WITHOUT, "float32"),
        (X86_WIDE_WITHOUT, "float32"),
        (ARM_WITH, "bfloat16"),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32(cpu, text, expected):
    cpu(text)
    assert parameter_type("auto", on_gpu=False) == expected


def test_a_machine_that_does_not_say_computes_in_float32(cpu):
    assert cpu_features() == frozenset()
    assert parameter_type("auto", on_gpu=False) == "float32"


def test_a_gpu_computes_in_bfloat16_whatever_its_cpu_has(cpu):
    cpu(X86_WITHOUT)
    assert parameter_type("auto", on_gpu=True) == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_type_that_is_named_is_taken(cpu, dtype, on_gpu):
    cpu(X86_WITHOUT)
    assert parameter_type(dtype, on_gpu=on_gpu) == dtype
