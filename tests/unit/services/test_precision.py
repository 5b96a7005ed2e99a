"""The parameter type follows a measurement, unless the configuration names one."""

import json
import math

import pytest

from services import precision
from services.precision import choose_precision, cpu_model, measure_ratio, time_ratio

ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2\nmodel name\t: A CPU\n"


def not_asked():
    raise AssertionError("nothing is to be measured here")


def chosen(tmp_path, ratio, dtype: precision.Dtype = "auto", on_gpu=False):
    measure = not_asked if ratio is None else lambda: ratio
    return choose_precision(dtype, on_gpu=on_gpu, cache_dir=str(tmp_path), measure=measure)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.25, "bfloat16"), (0.89, "bfloat16"), (0.91, "float32"), (1.0, "float32"), (70, "float32")],
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(tmp_path, ratio, expected):
    found = chosen(tmp_path, ratio)

    assert found.parameter_type == expected
    assert f"{ratio:.2f} times as long as in float32" in found.reason


def test_a_machine_is_measured_once(tmp_path):
    first = chosen(tmp_path, 0.5)

    assert chosen(tmp_path, None) == first
    (record,) = [json.loads(each.read_text()) for each in tmp_path.glob("precision-*.json")]
    assert record["bfloat16_over_float32"] == 0.5
    assert {"cpu", "torch"} <= record.keys()


def test_another_cpu_is_measured_for_itself(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPU_INFO", info)
    for text, ratio in ((X86, 0.5), (ARM, 2.0)):
        info.write_text(text)
        assert time_ratio(tmp_path, lambda ratio=ratio: ratio) == ratio

    assert len(list(tmp_path.glob("precision-*.json"))) == 2


@pytest.mark.parametrize("text", ["", "{", '{"bfloat16_over_float32": null}', "[]"])
def test_a_damaged_record_is_measured_again(tmp_path, text):
    chosen(tmp_path, 0.5)
    (file,) = tmp_path.glob("precision-*.json")
    file.write_text(text)

    assert chosen(tmp_path, 2.0).parameter_type == "float32"
    assert json.loads(file.read_text())["bfloat16_over_float32"] == 2.0


def test_what_cannot_be_measured_is_float32_and_is_tried_again(tmp_path):
    found = choose_precision(
        "auto", on_gpu=False, cache_dir=str(tmp_path), measure=lambda: math.nan
    )

    assert found.parameter_type == "float32"
    assert "could not be timed" in found.reason
    assert chosen(tmp_path, 0.5).parameter_type == "bfloat16"


def test_a_cache_that_cannot_be_written_costs_a_measurement_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")

    assert chosen(tmp_path / "file", 0.5).parameter_type == "bfloat16"


def test_a_gpu_computes_in_bfloat16_whatever_its_cpu_does(tmp_path):
    assert chosen(tmp_path, None, on_gpu=True).parameter_type == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_type_that_is_named_is_taken(tmp_path, dtype, on_gpu):
    found = chosen(tmp_path, None, dtype=dtype, on_gpu=on_gpu)

    assert (found.parameter_type, found.reason) == (dtype, "model.dtype says so")


@pytest.mark.parametrize(("text", "name"), [(X86, "A CPU"), (ARM, "0x41 0xd4f")])
def test_a_cpu_is_known_by_its_name_or_its_makers_numbers(tmp_path, monkeypatch, text, name):
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    monkeypatch.setattr(precision, "_CPU_INFO", info)

    assert cpu_model() == name


def test_a_product_is_timed_in_both_types():
    assert 0 < measure_ratio() < math.inf
