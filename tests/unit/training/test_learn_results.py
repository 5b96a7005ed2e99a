import json
import math
from pathlib import Path

import pytest

from tests.learn_sample import answers, begin_unit, make_experiment, make_unit, with_failures
from training.learn_results import MEASURES, PAIRED, learn_results, write_learn_results
from training.learn_table import learn_markdown, learn_table
from training.report_learn import write_learn_page

SKILLS = {"stage1": 0.2, "stage1_grpo": 0.3, "eag_rl": 0.9}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"), SKILLS, (1, 2))


@pytest.fixture(scope="module")
def results(experiment: Path) -> dict:
    return write_learn_results(experiment)


def of(rows: list[dict], **wanted: object) -> dict:
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_every_unit_has_its_measures_and_every_arm_their_means(results: dict) -> None:
    assert [(unit["arm"], unit["seed"]) for unit in results["units"]] == [
        (arm, seed) for arm in SKILLS for seed in (1, 2)
    ]
    for row in results["arms"]:
        units = [unit for unit in results["units"] if unit["arm"] == row["arm"]]
        for name in MEASURES:
            assert row[name] == pytest.approx(sum(unit[name] for unit in units) / 2)
        for name in PAIRED:
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert of(results["units"], arm="eag_rl", seed=1)["seconds"] == 80.0
    assert of(results["units"], arm="eag_rl", seed=1)["learner_tokens"] == 3000.0


def test_the_better_arm_wins_with_an_interval_clear_of_zero(results: dict) -> None:
    row = of(results["differences"], minus="stage1_grpo", measure="true_overlap")

    assert row["low"] > 0
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["seeds"] == [1, 2]
    assert row["difference"] == pytest.approx(sum(row["by_seed"]) / 2)


def test_what_is_known_of_the_cohort_stands_beside_the_arms(results: dict) -> None:
    truth = of(results["references"], name="true_risk")
    expert = of(results["references"], name="expert_salience")
    constant = of(results["references"], name="constant_set")

    assert truth["auroc"] == of(results["references"], name="concare")["auroc"]
    assert expert["true_overlap"] == 1.0
    assert 0 < constant["true_overlap"] < 1


def test_equal_arms_differ_by_nothing_and_nothing_could_be_detected(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {}, ())
    for arm in ("stage1_grpo", "eag_rl"):
        for seed in (1, 2, 3):
            make_unit(folder, arm, seed, answers("same", 0.5, seed))

    for row in learn_results(folder)["differences"]:
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
        assert row["minimal_detectable"] is None


def test_seeds_widen_an_interval_by_what_they_differ(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {}, ())
    for seed, skill in ((1, 0.0), (2, 0.9)):
        make_unit(folder, "eag_rl", seed, answers("eag_rl", skill, 5))
        make_unit(folder, "stage1_grpo", seed, answers("eag_rl", 0.45, 5))
    found = {row["arm"]: row for row in learn_results(folder)["arms"]}

    widths = {arm: row["true_overlap_high"] - row["true_overlap_low"] for arm, row in found.items()}
    assert widths["eag_rl"] > 1.5 * widths["stage1_grpo"]


def test_an_arm_that_is_asked_once_is_compared_with_every_seed(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {"eag_rl": 0.8}, (1, 2, 3))
    make_unit(folder, "stage1", 1, answers("stage1", 0.3, 1))

    row = of(learn_results(folder)["differences"], minus="stage1", measure="auroc")

    assert row["seeds"] == [1, 2, 3]


def test_only_seeds_that_both_arms_have_are_compared(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {"eag_rl": 0.8}, (1, 2, 3))
    make_unit(folder, "stage1_grpo", 2, answers("stage1_grpo", 0.3, 2))

    row = of(learn_results(folder)["differences"], minus="stage1_grpo", measure="reward")

    assert row["seeds"] == [2]


def test_an_unfinished_unit_is_named_and_enters_no_figure(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {"eag_rl": 0.8}, (1,))
    before = learn_results(folder)
    begin_unit(folder, "eag_rl", 2, steps=4)

    after = learn_results(folder)

    assert after["unfinished"] == [{"arm": "eag_rl", "seed": 2, "steps": 4}]
    assert after | {"unfinished": []} == before
    assert "eag_rl" not in learn_table(after)[-1]
    assert "EAG-RL seed 2 (4 steps committed)" in learn_table(after)[-1]


def test_an_unreadable_answer_has_the_floor(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {}, ())
    table = answers("eag_rl", 0.5, 1)
    make_unit(folder, "eag_rl", 1, with_failures(table, len(table)))

    (unit,) = learn_results(folder)["units"]

    assert unit["reward_cls"] == pytest.approx(math.log(0.01))
    assert unit["reward"] == pytest.approx(0.6 * math.log(0.01))
    assert unit["parse_failure_rate"] == 1.0


def test_answers_without_features_have_no_attention_reward(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {}, ())
    table = answers("vanilla", 0.5, 1)
    table["reward_att"] = None
    make_unit(folder, "vanilla", 1, table)

    (unit,) = learn_results(folder)["units"]

    assert (unit["reward"], unit["reward_att_excess"], unit["true_overlap"]) == (None, None, None)
    assert unit["auroc"] is not None
    assert json.loads(json.dumps(unit, allow_nan=False)) == unit


def test_an_experiment_without_any_unit_has_tables_and_a_page(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path, {}, ())
    found = write_learn_results(folder)

    assert found["units"] == []
    assert "No unit is finished yet" in write_learn_page(folder).read_text()
    assert learn_table(found)


def test_tables_have_every_seed_and_interval(results: dict) -> None:
    markdown = learn_markdown(results)

    assert markdown.count("| EAG-RL | ") == 2
    assert "EAG-RL, mean of 2" in markdown
    assert "tiny (made up)" in markdown
    assert "EAG-RL minus Stage-1 + GRPO, R_att: +" in markdown
    assert "nan" not in markdown.lower()


def test_the_page_shows_arms_differences_and_curves_and_loads_nothing(
    experiment: Path, results: dict
) -> None:
    page = write_learn_page(experiment).read_text()

    assert "Mean reward of the rollouts" in page
    assert "EAG-RL minus the others" in page
    assert page.count("<svg") >= 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
