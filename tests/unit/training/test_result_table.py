import numpy as np
import pytest

from training.evaluation.table import result_markdown, result_table
from training.readable import finite_number

ROW = {
    "method": "eag_rl",
    "auroc": 0.7124,
    "auroc_low": 0.5,
    "auroc_high": 0.9,
    "auprc": 0.6,
    "brier": 0.2,
    "ece": 0.1,
    "parse_failure_rate": 0.0625,
    "reward_att": 0.25,
    "reward_att_excess": -0.125,
    "n": 16,
}


def test_terminal_table_aligns_one_row_a_method_under_the_headings():
    lines = result_table([ROW, {"method": "vanilla", "n": 16}]).splitlines()

    assert lines[0].split("  ")[0] == "Method"
    assert set(lines[1]) == {"-", " "}
    assert lines[2].startswith("Vanilla")
    assert lines[3].startswith("EAG-RL")
    assert "0.712 [0.500, 0.900]" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_rates_are_percentages_and_an_interval_without_bounds_is_the_point_alone():
    last = result_table([ROW]).splitlines()[-1]

    assert last.split("  ")[-1].strip() == "16"
    assert "6.2 %" in last
    assert "0.600 [" not in last


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.7", True, [1], {}])
def test_a_value_that_is_no_finite_number_is_a_dash(value):
    table = result_table([{**ROW, "brier": value}])

    assert finite_number(value) is None
    assert table.splitlines()[-1].count(" - ") == 1


def test_numpy_numbers_are_numbers():
    assert finite_number(np.float32(0.5)) == 0.5
    assert finite_number(np.int64(3)) == 3


def test_rows_come_in_the_order_of_the_table_with_unknown_methods_last():
    rows = [{"method": name} for name in ("other", "concare", "eag_rl", "vanilla")]

    lines = result_table(rows).splitlines()[2:]

    assert [line.split("  ")[0] for line in lines] == ["Vanilla", "EAG-RL", "ConCare", "other"]


def test_an_ehr_model_gets_a_second_row_on_the_language_models_patients():
    row = {"method": "concare", "n": 84, "same_patients": {"auroc": 0.75, "n": 16}}

    lines = result_table([row]).splitlines()[2:]

    assert lines[0].startswith("ConCare  ")
    assert lines[1].startswith("ConCare, same patients")
    assert "0.750" in lines[1]


def test_markdown_has_a_rule_and_keeps_pipes_inside_their_cell():
    lines = result_markdown([{"method": "a|b\nc"}]).splitlines()

    assert lines[1].startswith("| --- | ---:")
    assert lines[2].startswith("| a\\|b c |")
    assert len(lines) == 3


def test_a_table_without_rows_is_its_heading():
    assert len(result_table([]).splitlines()) == 2
