"""The report's section on other orders of the features, from files that may be odd."""

import json

from tests.report_page import EVIL, read_page
from tests.run_folder_sample import write_sample_run
from training.report.feature_order import feature_order_section
from training.report.records import RunRecords

FOUND = {
    "num_features": 17,
    "means": [
        {"method": "eag_rl", "share": 0.0, "moved_features": 0, "num_seeds": 1, "auroc": 0.8},
        {
            "method": "eag_rl",
            "share": 0.25,
            "moved_features": 4,
            "num_seeds": 5,
            "auroc": 0.75,
            "auroc_sd": 0.02,
            "auprc": 0.5,
            "parse_failure_rate": 0.0,
            "reward_att": None,
        },
    ],
}


def test_a_row_says_what_moved_and_the_mean_over_seeds():
    section = feature_order_section(RunRecords(feature_order=FOUND))

    assert section is not None
    assert section["rows"] == [
        ["EAG-RL", "0 of 17 (p = 0.00)", "1", "0.800", "\u2013", "\u2013", "\u2013"],
        ["EAG-RL", "4 of 17 (p = 0.25)", "5", "0.750 +- 0.020", "0.500", "0.000", "\u2013"],
    ]


def test_there_is_no_section_without_another_order():
    assert feature_order_section(RunRecords()) is None


def test_odd_files_leave_dashes_and_names_are_text(tmp_path):
    odd = feature_order_section(RunRecords(feature_order={"means": [None, {"auroc": "x"}]}))
    assert odd is not None
    assert len(odd["rows"]) == 1

    run = write_sample_run(tmp_path / "run")
    hostile = {"num_features": EVIL, "means": [{"method": EVIL, "share": EVIL}]}
    (run / "evaluate" / "feature_order.json").write_text(json.dumps(hostile))
    page = read_page(run)

    assert page.open == []
    assert "Features in another order" in page.text
