import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import few_patients
from benchmarks.few_patients import ALL, main, mean_with_interval, points
from ehr.errors import DataError
from tests.expert_cohort import tiny_cohort, tiny_section

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
LABELS = np.array([0, 0, 1, 1])


def test_the_mean_over_seeds_lies_in_its_interval():
    risks = np.array([[0.1, 0.2, 0.8, 0.9], [0.1, 0.9, 0.2, 0.8]])

    found = mean_with_interval(LABELS, risks)

    assert found["auroc_by_seed"] == [1.0, 0.5]
    assert found["auroc"] == 0.75
    assert 0 <= found["auroc_low"] < 0.75 < found["auroc_high"] <= 1
    assert found["seeds_note"].startswith("two seeds: too few")


def test_choices_of_training_patients_widen_the_interval_by_t():
    alike = np.tile(np.linspace(0.1, 0.9, 40), (3, 1))
    labels = np.tile([0, 0, 1, 1], 10)
    apart = np.stack([alike[0], labels * 0.5 + alike[0] / 2, 1 - alike[0]])

    same, other = mean_with_interval(labels, alike), mean_with_interval(labels, apart)

    assert other["seeds_note"].startswith("three seeds: too few")
    deviation = np.std(other["auroc_by_seed"], ddof=1) / np.sqrt(3)
    value = other["auroc"]
    reach = 4.302653 * deviation / (value * (1 - value))  # on the log-odds, over seeds alone
    assert np.log(value / (1 - value)) - np.log(other["auroc_low"] / (1 - other["auroc_low"])) > (
        0.5 * reach
    )
    assert same["auroc_high"] - same["auroc_low"] < other["auroc_high"] - other["auroc_low"]


@pytest.mark.slow
def test_every_model_is_trained_on_so_many_patients_and_all_of_them_once():
    cohort = tiny_cohort()
    section = tiny_section(epochs=1, whole_members=1)

    few = points(cohort, section, "6", [0, 1])
    everybody = points(cohort, section, ALL, [0, 1])

    methods = ["concare", "logistic_regression", "gradient_boosting"]
    assert [row["method"] for row in few] == [row["method"] for row in everybody] == methods
    assert {(row["train_patients"], len(row["seeds"])) for row in few} == {(6, 2)}
    assert {(row["train_patients"], len(row["seeds"])) for row in everybody} == {(24, 1)}
    assert {row["test_patients"] for row in (*few, *everybody)} == {16}


def test_more_patients_than_there_are_are_refused():
    with pytest.raises(DataError, match="24 training patients"):
        points(tiny_cohort(), tiny_section(), "25", [0])


@pytest.mark.parametrize("size", ["9999", "3", "some"])
def test_a_size_that_cannot_be_is_refused_before_anything_is_trained(
    size, monkeypatch, tmp_path, capsys
):
    fitted = []
    monkeypatch.setattr(few_patients, "points", lambda *given: fitted.append(given))
    given = [str(TINY), "--sizes", "10", size, "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["few_patients", *given])

    with pytest.raises(SystemExit):
        main()

    assert fitted == []
    assert size in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "found.json").exists()


def test_what_is_measured_is_kept_when_a_later_size_is_interrupted(monkeypatch, tmp_path):
    def measured(cohort, section, size, seeds):
        if size == ALL:
            raise KeyboardInterrupt
        return [{"size": size}]

    monkeypatch.setattr(few_patients, "points", measured)
    monkeypatch.setattr(few_patients, "table", str)
    given = [str(TINY), "--sizes", "10", ALL, "--json", str(tmp_path / "folder" / "found.json")]
    monkeypatch.setattr(sys, "argv", ["few_patients", *given])

    with pytest.raises(KeyboardInterrupt):
        main()

    found = json.loads((tmp_path / "folder" / "found.json").read_text())
    assert found["rows"] == [{"size": "10"}]
