"""The results of an experiment, from folders as `eag-rl learn` leaves them."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.seeds import holm
from tests.experiment_folder_sample import SampleExperiment
from training.experiments.answers import (
    Answered,
    Known,
    Resamples,
    answered,
    constant_set,
)
from training.experiments.measures import difference_of
from training.experiments.page import write_learn_page
from training.experiments.results_file import read_learn_results, write_learn_results
from training.experiments.table import facts, learn_markdown, learn_table


@pytest.fixture
def sample(tmp_path: Path) -> SampleExperiment:
    experiment = SampleExperiment(tmp_path)
    experiment.write_shared()
    experiment.write_unit("vanilla", 17)
    experiment.write_unit("stage1", 17)
    for seed in (17, 18):
        experiment.write_unit("stage1_grpo", seed)
        experiment.write_unit("eag_rl", seed)
    return experiment


def results_of_shared_stages(folder: Path, origin: str | None) -> dict[str, Any]:
    """Results of an experiment none of whose units has begun."""
    SampleExperiment(folder, origin=origin).write_shared()
    return write_learn_results(folder)


def by_arm(results: dict) -> dict:
    return {arm["arm"]: arm for arm in results["arms"]}


def test_every_measure_of_an_answer_is_what_it_is_by_hand() -> None:
    predictions = pd.DataFrame(
        {
            "patient_id": ["b", "a"],
            "label": [1, 0],
            "probability": [0.8, 0.4],
            "parse_failed": [False, True],
            "features": [["pH", "Glucose"], []],
            "salient": [["pH", "Weight"], ["pH", "Weight"]],
            "reward_att": [1 / 3, 0.0],
            "num_claims": [4, 0],
            "wrong_claims": [["pH 9.1: not in the record"], []],
        }
    )
    section = RewardSection(accuracy_weight=0.6, decision_threshold=0.5, margin_bonus=1.0)
    resamples = Resamples.draw(2, 100, seed=0)
    constant = constant_set([{"pH", "Weight"}, {"pH", "Weight"}], 5)

    found = answered(predictions, ["a", "b"], section, resamples, Known(constant=constant))

    readable = math.log(0.8) + 0.3
    floor = math.log(0.01)
    assert found.per_patient["reward_cls"].tolist() == pytest.approx([floor, readable])
    assert found.per_patient["reward"].tolist() == pytest.approx(
        [0.6 * floor, 0.6 * readable + 0.4 / 3]
    )
    assert found.per_patient["reward_att_excess"].tolist() == pytest.approx([-1, 1 / 3 - 1])
    values = {name: found.measure(name) for name in ("grounding_error_rate", "auroc", "brier")}
    assert [v[0] for v in values.values() if v is not None] == pytest.approx([0.25, 1.0, 0.1])
    assert found.measure("truth_overlap") is None


ASKED_TWICE = pd.DataFrame(
    {
        "patient_id": ["b", "a"],
        "label": [1, 0],
        "probability": [0.6, 0.4],
        "parse_failed": [False, True],
        "features": [None, None],
        "salient": [None, None],
        "reward_att": [None, None],
        "num_claims": [None, None],
        "wrong_claims": [None, None],
        "sample_probabilities": [[0.9, 0.3], [0.4, 0.4]],
        "sample_failed": [[False, False], [False, True]],
    }
)
BARE = RewardSection(margin_bonus=0.0)


def test_one_answer_is_measured_alone_and_averaged_over_the_samples() -> None:
    resamples = Resamples.draw(2, 100, seed=0)

    found = answered(ASKED_TWICE, ["a", "b"], BARE, resamples)

    auroc, auroc_of_one = found.measure("auroc"), found.measure("auroc_one")
    assert auroc is not None
    assert auroc_of_one is not None
    assert (auroc[0], auroc_of_one[0]) == (1.0, 0.5)  # .9 > .4, but .3 < .4
    assert np.isnan(auroc_of_one).sum() == np.isnan(auroc).sum()  # resamples of one class
    assert found.per_patient["reward_cls_one"].tolist() == pytest.approx(
        [(math.log(0.6) + math.log(0.01)) / 2, (math.log(0.9) + math.log(0.3)) / 2]
    )


def test_an_unreadable_answer_of_two_is_a_half_and_no_floor_for_the_mean() -> None:
    found = answered(ASKED_TWICE, ["a", "b"], BARE, Resamples.draw(2, 100, seed=0))

    assert found.per_patient["parse_failure_rate"].tolist() == [0.5, 0]
    # R_cls of the mean probabilities, .4 and .6
    assert found.per_patient["reward_cls"].tolist() == pytest.approx([math.log(0.6)] * 2)


def test_a_patient_without_a_readable_answer_has_the_floor() -> None:
    table = ASKED_TWICE.assign(sample_failed=[[False, False], [True, True]])

    found = answered(table, ["a", "b"], BARE, Resamples.draw(2, 100, seed=0))

    assert found.per_patient["parse_failure_rate"].tolist() == [1, 0]
    assert found.per_patient["reward_cls"][0] == math.log(0.01)
    assert found.per_patient["reward_cls_one"][0] == math.log(0.01)


NAMED_TWICE = ASKED_TWICE.assign(
    features=[["Weight", "pH"], ["pH"]],
    salient=[["Weight", "pH"]] * 2,
    reward_att=[1.0, 0.5],
    sample_features=[[["Weight", "pH"], []], [["pH"], []]],
)


def test_the_reward_is_that_of_each_answer_and_then_the_mean() -> None:
    section = RewardSection(margin_bonus=0.0, accuracy_weight=0.6)

    found = answered(NAMED_TWICE, ["a", "b"], section, Resamples.draw(2, 100, seed=0))

    # a, label 0: .4 with one of two names, unreadable; b, label 1: .9 with both, .3 with none
    assert found.per_patient["reward"].tolist() == pytest.approx(
        [
            (0.6 * math.log(0.6) + 0.4 * 0.5 + 0.6 * math.log(0.01)) / 2,
            (0.6 * math.log(0.9) + 0.4 * 1 + 0.6 * math.log(0.3)) / 2,
        ]
    )
    assert found.per_patient["reward_att"].tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("table", "has_every_name"),
    [(NAMED_TWICE.drop(columns="sample_features"), True), (NAMED_TWICE, False)],
)
def test_where_names_of_the_first_answer_are_all_there_is_no_reward(table, has_every_name) -> None:
    resamples = Resamples.draw(2, 100, seed=0)

    found = answered(table, ["a", "b"], BARE, resamples, has_every_name=has_every_name)

    assert found.measure("reward") is None
    assert found.per_patient["reward_att"].tolist() == [0.5, 1]  # the first answers'
    assert found.per_patient["reward_cls_one"].shape == (2,)


def test_patients_asked_unequally_often_are_refused() -> None:
    table = ASKED_TWICE.assign(
        sample_probabilities=[[0.9], [0.4, 0.4]], sample_failed=[[False], [False, True]]
    )

    with pytest.raises(DataError, match="--redo evaluate"):
        answered(table, ["a", "b"], BARE, Resamples.draw(2, 100, seed=0))


def asked_twice(table: pd.DataFrame) -> pd.DataFrame:
    """The same answer of each patient twice."""
    return table.assign(
        sample_probabilities=[[p, p] for p in table["probability"]],
        sample_failed=[[failed, failed] for failed in table["parse_failed"]],
        sample_features=[[names, names] for names in table["features"]],
    )


def test_one_table_never_mixes_all_answers_names_with_the_first_ones(tmp_path: Path) -> None:
    sample = SampleExperiment(tmp_path, arms=("stage1", "eag_rl"), seeds=(17,))
    evaluate = sample.config.evaluate.model_copy(update={"num_samples": 2})
    sample.config = sample.config.model_copy(update={"evaluate": evaluate})
    sample.write_shared()
    for arm in ("stage1", "eag_rl"):
        sample.write_unit(arm, 17, predictions=asked_twice(sample.predictions(arm, 17)))
    every = write_learn_results(tmp_path)
    earlier = asked_twice(sample.predictions("stage1", 17)).drop(columns="sample_features")
    sample.write_unit("stage1", 17, predictions=earlier)

    first = write_learn_results(tmp_path)

    assert (every["names_of"], first["names_of"]) == ("every answer", "first answer")
    assert by_arm(every)["eag_rl"]["measures"]["reward"] is not None
    assert {arm["measures"]["reward"] for arm in first["arms"]} == {None}
    assert all(arm["measures"]["reward_att"] is not None for arm in first["arms"])
    assert "reward" not in {row["measure"] for row in first["differences"]}
    assert "R is missing" in learn_markdown(first)
    assert "| AUROC, mean of 2 | AUROC, one answer |" in learn_markdown(every)
    assert "as Stage 2 rewards them" in learn_markdown(every)


@pytest.mark.parametrize(
    "asked_once",
    [
        ASKED_TWICE.drop(columns=["sample_probabilities", "sample_failed"]),
        ASKED_TWICE.assign(sample_probabilities=[[0.9], [0.4]], sample_failed=[[False], [False]]),
        ASKED_TWICE.assign(sample_probabilities=[None, None], sample_failed=[None, None]),
    ],
)
def test_where_patients_were_asked_once_there_is_nothing_to_average(asked_once) -> None:
    found = answered(asked_once, ["a", "b"], BARE, Resamples.draw(2, 100, seed=0))

    assert found.measure("auroc_one") is None
    assert found.measure("reward_cls_one") is None


def test_risks_learned_from_balanced_draws_are_judged_at_the_cohorts_rate_too() -> None:
    resamples = Resamples.draw(2, 100, seed=0)

    found = answered(ASKED_TWICE, ["a", "b"], BARE, resamples, Known(rate=0.2))

    # means of the samples: .6 for the positive, .4 for the other; a quarter of their odds
    at_rate = [0.6 / (0.6 + 4 * 0.4), 0.4 / (0.4 + 4 * 0.6)]
    calibration_error = found.measure("ece_at_rate")
    assert calibration_error is not None
    assert calibration_error[0] == pytest.approx((1 - at_rate[0] + at_rate[1]) / 2)
    assert answered(ASKED_TWICE, ["a", "b"], BARE, resamples).measure("ece_at_rate") is None


EVERY_KIND_OF_ARM = ("vanilla", "untrained", "sft", "stage1", "eag_rl", "without_stage1")


def arms_at_the_rate(folder: Path, changes: dict[str, dict[str, object]]) -> set[str]:
    """Arms whose risks are also judged at the cohort's rate."""
    experiment = SampleExperiment(folder, arms=EVERY_KIND_OF_ARM, seeds=(17,))
    for section, settings in changes.items():
        changed = getattr(experiment.config, section).model_copy(update=settings)
        experiment.config = experiment.config.model_copy(update={section: changed})
    experiment.write_shared()
    for arm in EVERY_KIND_OF_ARM:
        experiment.write_unit(arm, 17)
    arms = by_arm(write_learn_results(folder))
    return {name for name, arm in arms.items() if arm["measures"]["ece_at_rate"] is not None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"sft", "stage1", "eag_rl", "without_stage1"}),
        ({"grpo": {"balance": False}}, {"sft", "stage1"}),
        ({"search": {"balance": False}}, {"sft", "eag_rl", "without_stage1"}),
        ({"grpo": {"balance": False}, "search": {"balance": False}}, {"sft"}),
        ({"evaluate": {"balance": True}}, set()),
    ],
)
def test_an_arm_is_judged_at_the_cohorts_rate_where_its_own_training_was_balanced(
    tmp_path: Path, changes, expected
) -> None:
    assert arms_at_the_rate(tmp_path, changes) == expected


@pytest.mark.parametrize(("num_patients", "is_half"), [(20, True), (200, False), (None, False)])
def test_a_search_that_runs_out_of_positives_is_not_balanced(
    tmp_path: Path, num_patients, is_half
) -> None:
    arms = arms_at_the_rate(tmp_path, {"search": {"num_patients": num_patients}})

    assert ("stage1" in arms) == is_half


def test_risks_at_the_cohorts_rate_have_another_calibration_error(
    sample: SampleExperiment,
) -> None:
    measures = by_arm(write_learn_results(sample.folder))["eag_rl"]["measures"]

    assert 0 <= measures["ece_at_rate"]["value"] != measures["ece"]["value"]


def test_the_main_arm_is_compared_with_models_of_the_record_on_the_same_patients(
    sample: SampleExperiment,
) -> None:
    results = write_learn_results(sample.folder)

    rows = {(row["minus"], row["measure"]): row for row in results["differences"]}
    row = rows["concare", "auroc"]
    arm, concare = by_arm(results)["eag_rl"], results["references"][0]
    assert concare["name"] == "concare"
    assert row["seeds"] == [17, 18]
    assert row["difference"] == pytest.approx(
        arm["measures"]["auroc"]["value"] - concare["measures"]["auroc"]["value"]
    )
    assert row["low"] < row["difference"] < row["high"]
    assert ("concare", "reward_att") not in rows


def test_a_mean_is_that_of_the_seeds_and_both_are_shown(sample: SampleExperiment) -> None:
    results = write_learn_results(sample.folder)

    arm = by_arm(results)["eag_rl"]
    seeds = [unit["measures"]["auroc"]["value"] for unit in arm["units"]]
    assert [unit["seed"] for unit in arm["units"]] == [17, 18]
    assert arm["measures"]["auroc"]["value"] == pytest.approx(np.mean(seeds))
    assert arm["units"][0]["tokens"] == {
        "prompt": 5000,
        "sampled": 2500,
        "trained": 1500,
        "learner": 7500,
    }


@pytest.mark.parametrize("state", ["training", "evaluating"])
def test_an_unfinished_unit_enters_no_number(sample: SampleExperiment, state) -> None:
    before = write_learn_results(sample.folder)
    sample.config = sample.config.model_copy(
        update={"learn": sample.config.learn.model_copy(update={"seeds": (17, 18, 19)})}
    )
    sample.write_unit("eag_rl", 19, state)

    after = write_learn_results(sample.folder)

    assert by_arm(after)["eag_rl"]["measures"] == by_arm(before)["eag_rl"]["measures"]
    assert after["differences"] == before["differences"]
    (unit,) = after["unfinished"]
    assert (unit["arm"], unit["seed"], unit["state"]) == ("eag_rl", 19, "running")
    assert (unit["steps"], unit["planned_steps"]) == (2 if state == "training" else 5, 5)


def test_results_before_any_unit_say_what_is_missing(tmp_path: Path) -> None:
    SampleExperiment(tmp_path).write_shared()

    results = write_learn_results(tmp_path)

    assert results["arms"] == []
    assert {unit["state"] for unit in results["unfinished"]} == {"not begun"}
    assert any("EAG-RL, seed 18 (not begun)" in line for line in learn_table(results))


def test_equal_arms_differ_by_exactly_nothing(sample: SampleExperiment) -> None:
    for seed in (17, 18):
        sample.write_unit("stage1_grpo", seed, predictions=sample.predictions("eag_rl", seed))

    results = write_learn_results(sample.folder)

    rows = [row for row in results["differences"] if row["minus"] == "stage1_grpo"]
    assert len(rows) == 6
    assert {(row["difference"], row["low"], row["high"]) for row in rows} == {(0.0, 0.0, 0.0)}
    assert {(row["minimal_detectable"], row["p"]) for row in rows} == {(None, 1.0)}


def test_what_each_part_does_alone_stands_beside_what_both_do(tmp_path: Path) -> None:
    arms = ("stage1_grpo", "eag_rl", "without_attention_reward", "without_adaptive_clip")
    experiment = SampleExperiment(tmp_path, arms=arms)
    experiment.write_shared()
    for arm, seed in itertools.product(arms, (17, 18)):
        experiment.write_unit(arm, seed)

    results = write_learn_results(tmp_path)

    rows = [row for row in results["differences"] if row["measure"] == "reward_att"]
    values = {arm: row["measures"]["reward_att"]["value"] for arm, row in by_arm(results).items()}
    assert [(row["arm"], row["minus"]) for row in rows] == [
        ("eag_rl", "stage1_grpo"),
        ("eag_rl", "without_attention_reward"),
        ("eag_rl", "without_adaptive_clip"),
        ("without_adaptive_clip", "stage1_grpo"),
        ("without_attention_reward", "stage1_grpo"),
    ]
    for row in rows:
        assert row["difference"] == pytest.approx(values[row["arm"]] - values[row["minus"]])
    assert "w/o adaptive clip - Stage-1 + GRPO" in "\n".join(learn_table(results))
    page = write_learn_page(tmp_path).read_text("utf-8")
    assert "w/o adaptive clip minus Stage-1 + GRPO" in page


def test_no_pair_of_arms_is_compared_both_ways(tmp_path: Path) -> None:
    arms = ("stage1_grpo", "without_adaptive_clip")
    experiment = SampleExperiment(tmp_path, arms=arms, seeds=(17,))
    experiment.write_shared()
    for arm in arms:
        experiment.write_unit(arm, 17)

    rows = write_learn_results(tmp_path)["differences"]

    of_reward = [(row["arm"], row["minus"]) for row in rows if row["measure"] == "reward_att"]
    assert of_reward == [("stage1_grpo", "without_adaptive_clip")]


def test_the_difference_of_two_arms_in_excess_is_that_in_attention_reward(
    sample: SampleExperiment,
) -> None:
    results = write_learn_results(sample.folder)

    arms = by_arm(results)
    excess = [arms[name]["measures"]["reward_att_excess"]["value"] for name in ("eag_rl", "stage1")]
    (row,) = (
        row
        for row in results["differences"]
        if (row["minus"], row["measure"]) == ("stage1", "reward_att")
    )
    assert row["difference"] == pytest.approx(excess[0] - excess[1])
    assert np.mean(row["by_seed"]) == pytest.approx(row["difference"])
    assert row["seeds"] == [17, 18]  # Stage-1 was asked once and stands against each


@pytest.fixture
def three_seeds(tmp_path: Path) -> dict[str, Any]:
    experiment = SampleExperiment(tmp_path / "three", seeds=(17, 18, 19))
    experiment.write_shared()
    experiment.write_unit("stage1", 17)
    for seed in (17, 18, 19):
        experiment.write_unit("eag_rl", seed)
        experiment.write_unit("stage1_grpo", seed)
    return write_learn_results(experiment.folder)


def test_the_interval_p_and_what_is_detectable_are_by_one_t(three_seeds) -> None:
    row = next(row for row in three_seeds["differences"] if row["measure"] == "reward_att")

    t = stats.t(df=row["degrees_of_freedom"])
    half = t.ppf(0.975) * row["standard_error"]
    assert row["degrees_of_freedom"] >= 2
    assert row["standard_error"] >= np.std(row["by_seed"], ddof=1) / math.sqrt(3) * 0.99
    assert row["high"] - row["difference"] == pytest.approx(half)
    assert row["difference"] - row["low"] == pytest.approx(half)
    assert row["p"] == pytest.approx(2 * t.sf(abs(row["difference"]) / row["standard_error"]))
    detectable = (t.ppf(0.975) + t.ppf(0.8)) * row["standard_error"]
    assert row["minimal_detectable"] == pytest.approx(detectable)


def test_p_values_are_adjusted_for_the_whole_table(three_seeds) -> None:
    rows = three_seeds["differences"]

    assert {row["minus"] for row in rows} > {"stage1", "stage1_grpo"}
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    assert all(row["p_holm"] >= row["p"] for row in rows)


def test_too_few_seeds_are_said_to_be_beside_the_intervals(
    three_seeds, sample: SampleExperiment
) -> None:
    two_seeds = write_learn_results(sample.folder)

    for results, words in ((two_seeds, "two"), (three_seeds, "three")):
        note = by_arm(results)["eag_rl"]["seeds_note"]
        assert note.startswith(f"{words} seeds: too few for an interval over seeds")
        assert {row["seeds_note"] for row in results["differences"]} == {note}
        assert note in "\n".join(learn_table(results))
        shown = f"| mean of {len(results['seeds'])}: too few for an interval over seeds"
        assert shown in learn_markdown(results)
        assert by_arm(results)["stage1"]["seeds_note"] is None  # it has no training of its own


def test_results_of_earlier_releases_have_no_p_values_and_are_shown(three_seeds) -> None:
    before = learn_markdown(three_seeds)
    for row in three_seeds["differences"]:
        del row["p"], row["p_holm"], row["seeds_note"]
    for arm in three_seeds["arms"]:
        del arm["seeds_note"]

    assert "too few" in before.split("Brackets")[1].split("| Arm")[1]
    assert "| - | - | 3 |" in learn_markdown(three_seeds)


def test_arms_are_paired_by_seed(sample: SampleExperiment) -> None:
    sample.write_unit("stage1_dapo", 18)

    results = write_learn_results(sample.folder)

    assert {
        tuple(row["seeds"]) for row in results["differences"] if row["minus"] == "stage1_dapo"
    } == {(18,)}


def test_the_order_of_patients_changes_nothing(sample: SampleExperiment) -> None:
    before = write_learn_results(sample.folder)
    for seed in (17, 18):
        shuffled = sample.predictions("eag_rl", seed).sample(frac=1, random_state=3)
        sample.write_unit("eag_rl", seed, predictions=shuffled)

    after = write_learn_results(sample.folder)
    assert by_arm(after)["eag_rl"]["measures"] == by_arm(before)["eag_rl"]["measures"]
    assert after["differences"] == before["differences"]


def test_a_ceiling_stands_beside_the_arms(sample: SampleExperiment) -> None:
    results = write_learn_results(sample.folder)

    rows = {row["name"]: row["measures"] for row in results["references"]}
    assert rows["true_risk"]["auroc"]["value"] > 0.5
    assert rows["expert_salience"]["truth_overlap"]["value"] == pytest.approx(3 / 7)
    assert rows["constant_set"].keys() == {"reward_att", "reward_att_own", "truth_overlap"}
    assert rows["constant_set"]["reward_att_own"] == {"value": 0, "low": 0, "high": 0}
    assert rows["expert_salience"]["reward_att_own"]["value"] > 0
    assert {"concare", "logistic_regression"} <= rows.keys()


def test_a_cohort_without_truth_has_no_overlap_with_it(sample: SampleExperiment) -> None:
    (sample.folder / "cohort" / "truth.parquet").unlink()

    results = write_learn_results(sample.folder)

    assert all(arm["measures"]["truth_overlap"] is None for arm in results["arms"])
    assert "Overlap with truth" not in learn_markdown(results)


def test_a_table_that_cannot_be_read_is_named_and_left_out(sample: SampleExperiment) -> None:
    place = "arms/eag_rl/seed-18/evaluate/predictions.parquet"
    (sample.folder / place).write_text("not a table")

    results = write_learn_results(sample.folder)

    assert by_arm(results)["eag_rl"]["num_seeds"] == 1
    assert any(place in problem for problem in results["problems"])


def test_one_class_has_no_ranking_and_the_file_is_strict_json(sample: SampleExperiment) -> None:
    for arm in ("vanilla", "stage1", "stage1_grpo", "eag_rl"):
        for seed in (17, 18) if arm in ("stage1_grpo", "eag_rl") else (17,):
            table = sample.predictions(arm, seed).assign(label=0)
            sample.write_unit(arm, seed, predictions=table)

    write_learn_results(sample.folder)

    text = (sample.folder / "learn" / "results.json").read_text()
    results = json.loads(text, parse_constant=pytest.fail)
    assert by_arm(results)["eag_rl"]["measures"]["auroc"] is None
    assert by_arm(results)["eag_rl"]["measures"]["brier"] is not None


def test_patients_that_a_unit_lacks_are_left_out_of_all(sample: SampleExperiment) -> None:
    sample.write_unit("eag_rl", 18, predictions=sample.predictions("eag_rl", 18).iloc[3:])

    results = write_learn_results(sample.folder)

    assert results["num_patients_left_out"] == 3
    assert {row["n"] for row in results["differences"]} == {len(sample.patients) - 3}


def test_units_without_a_shared_patient_are_refused(sample: SampleExperiment) -> None:
    table = sample.predictions("eag_rl", 18)
    table["patient_id"] = [f"other-{patient}" for patient in table["patient_id"]]
    sample.write_unit("eag_rl", 18, predictions=table)

    with pytest.raises(DataError, match="share none of"):
        write_learn_results(sample.folder)


def test_the_tables_name_what_was_measured(sample: SampleExperiment) -> None:
    sample.write_unit("stage1_grpo", 18, "training")
    (sample.folder / "arms/stage1_grpo/seed-18/evaluate/stage.json").unlink()
    results = write_learn_results(sample.folder)

    markdown, table = learn_markdown(results), "\n".join(learn_table(results))

    assert "SmolLM2-135M-Instruct, Q4_1 GGUF" in markdown
    assert f"{len(sample.patients)} test patients" in markdown
    assert "| EAG-RL | mean of 2: too few" in markdown
    assert "|  | 18 |" in markdown
    assert "unfinished: Stage-1 + GRPO, seed 18 (grpo running, 2 of 5 steps)" in markdown
    assert "EAG-RL - Stage-1 + GRPO" in table
    assert "True risk" in table


def test_the_facts_say_where_the_data_came_from(tmp_path: Path) -> None:
    told = learn_markdown(results_of_shared_stages(tmp_path / "told", "a mirror"))
    silent = results_of_shared_stages(tmp_path / "silent", None)

    assert "Data: a mirror." in told
    assert "Data:" not in learn_markdown(silent)
    del silent["data_origin"]  # as results of earlier versions
    assert "Data:" not in learn_markdown(silent)


def test_the_facts_say_how_many_patients_the_arms_learned_from(sample: SampleExperiment) -> None:
    train = sample.cohort.splits["train"]
    num_positives = sum(sample.cohort.labels[patient] for patient in train)

    results = write_learn_results(sample.folder)

    assert (results["num_train_patients"], results["num_train_positives"]) == (
        len(train),
        num_positives,
    )
    told = f"{len(train)} training patients, {num_positives} positive; {len(sample.patients)} test"
    assert told in "".join(facts(results))
    assert "training patients" not in "".join(facts(results, has_training_patients=False))


@pytest.mark.parametrize("broken", ["not JSON", "{}", '{"splits": {"train": {"patients": "?"}}}'])
def test_a_cohort_that_cannot_be_read_leaves_the_training_patients_out(
    sample: SampleExperiment, broken
) -> None:
    (sample.folder / "cohort" / "summary.json").write_text(broken)

    results = write_learn_results(sample.folder)

    assert results["num_train_patients"] is None
    assert results["num_train_positives"] is None
    assert "training patients" not in "".join(facts(results))
    earlier = {name: value for name, value in results.items() if "num_train" not in name}
    assert "training patients" not in "".join(facts(earlier))


def test_the_results_are_written_as_markdown_too(sample: SampleExperiment) -> None:
    results = write_learn_results(sample.folder)

    folder = sample.folder / "learn"
    assert (folder / "results.md").read_text("utf-8") == learn_markdown(results)
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]


def test_results_that_were_never_written_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eag-rl learn"):
        read_learn_results(tmp_path)


def test_arms_without_a_shared_seed_or_measure_are_not_compared() -> None:
    resamples = Resamples.draw(2, 100, seed=0)
    each = Answered(
        labels=np.array([0, 1]),
        probabilities=np.array([0.2, 0.7]),
        resamples=resamples,
        per_patient={},
    )

    assert difference_of("auroc", {17: each}, {18: each}) is None
    assert difference_of("reward", {17: each}, {17: each}) is None


@pytest.fixture
def asked_elsewhere(tmp_path: Path) -> SampleExperiment:
    experiment = SampleExperiment(tmp_path, other_seed=5)
    experiment.write_shared()
    experiment.write_unit("stage1", 17)
    for seed in (17, 18):
        experiment.write_unit("stage1_grpo", seed)
        experiment.write_unit("eag_rl", seed)
    return experiment


def test_another_cohort_is_measured_as_the_experiments_own(
    asked_elsewhere: SampleExperiment,
) -> None:
    results = write_learn_results(asked_elsewhere.folder)

    elsewhere = results["other_cohort"]
    assert elsewhere["num_patients"] == len(asked_elsewhere.patients) // 2
    assert (elsewhere["num_mapped"], elsewhere["num_missing"]) == (1, 2)
    measures = by_arm(elsewhere)["eag_rl"]["measures"]
    assert measures["auroc"]["value"] != by_arm(results)["eag_rl"]["measures"]["auroc"]["value"]
    assert {name for name in measures if name.startswith("reward_att") and measures[name]} == set()
    assert {row["minus"] for row in elsewhere["differences"]} == {
        "stage1",
        "stage1_grpo",
        "concare",
        "logistic_regression_shared",
    }
    assert {tuple(row["seeds"]) for row in elsewhere["differences"]} == {(17, 18)}
    assert [row["name"] for row in elsewhere["references"]] == [
        "concare",
        "logistic_regression_shared",
    ]


def test_the_tables_have_the_other_cohort_behind_the_experiments_own(
    asked_elsewhere: SampleExperiment,
) -> None:
    results = write_learn_results(asked_elsewhere.folder)

    for text in (learn_markdown(results), "\n".join(learn_table(results))):
        own, elsewhere = text.split("Another test cohort: synthetic")
        assert "True risk" in own
        assert "True risk" not in elsewhere
        assert "EAG-RL" in elsewhere
    assert "get 1 of 3 features through a map" in learn_markdown(results)


def test_a_broken_table_of_the_other_cohort_is_named_and_its_unit_left_out_there(
    asked_elsewhere: SampleExperiment,
) -> None:
    place = "arms/eag_rl/seed-18/evaluate/other_cohort_predictions.parquet"
    (asked_elsewhere.folder / place).write_text("not a table")

    results = write_learn_results(asked_elsewhere.folder)

    assert any(place in problem for problem in results["problems"])
    assert by_arm(results)["eag_rl"]["num_seeds"] == 2
    assert by_arm(results["other_cohort"])["eag_rl"]["num_seeds"] == 1


def test_without_another_cohort_nothing_is_said_of_one(sample: SampleExperiment) -> None:
    results = write_learn_results(sample.folder)

    assert results["other_cohort"] is None
    del results["other_cohort"]  # as results of earlier versions
    assert "Another test cohort" not in learn_markdown(results)
