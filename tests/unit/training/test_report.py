import base64
import hashlib
import json
import math
import re

import pandas as pd
import pytest

from ehr.salience.agreement import jaccard
from tests.report_page import EVIL, read_page
from tests.run_folder_sample import STAGES, write_sample_run
from training.report.case import compare_case
from training.report.page import write_report
from training.report.records import read_run
from training.report.search_explorer import explorer_script


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample_run(tmp_path_factory.mktemp("runs") / "sample")


@pytest.fixture(scope="module")
def page(sample):
    return read_page(sample)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_page_lies_in_the_run_folder_and_is_small(sample):
    path = write_report(sample)

    assert path == sample / "report.html"
    assert path.stat().st_size < 2_000_000
    assert not list(sample.glob("*.partial"))


def test_every_element_that_is_opened_is_closed(page):
    assert page.open == []


def test_the_page_loads_nothing_and_runs_one_script_that_it_names(page):
    names = {name for name, _ in page.attributes}

    assert {"link", "img", "iframe", "object", "base"}.isdisjoint(page.tags)
    assert not [name for name in names if name.startswith("on") or name in ("src", "srcdoc")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    policy = next(value for name, value in page.attributes if name == "content" and "src" in value)
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert policy.endswith(f"; script-src 'sha256-{digest}'")
    assert ("type", "application/json") in page.attributes
    assert isinstance(json.loads(data)["trees"], list)
    assert page.tags.count("script") == 2


def test_a_page_without_a_tree_has_no_script(tmp_path):
    page = read_page(write_sample_run(tmp_path / "run", stages=("cohort", "expert")))

    assert "script" not in page.tags
    assert not [value for name, value in page.attributes if value and "script-src" in value]


def test_the_style_sheet_names_no_address(sample):
    text = write_report(sample).read_text()

    assert not [mark for mark in ("url(", "http://", "https://") if mark in text]


def test_the_header_says_what_ran_and_what_it_is_for(page):
    for fact in ("sample", "mortality", "synthetic", "smollm2-135m", "0123456789ab", "guided"):
        assert fact in page.text
    assert "dequantised from a 4-bit file" in page.text
    assert "b179c9523d0e6a0f" in page.text
    assert "Data the sample's own patients" in page.text
    assert "Research only, not for clinical use" in page.text


def test_small_tests_are_called_what_they_are(page):
    assert "tested on 16 patients. Such sizes show that it runs and nothing else." in page.text


def test_a_hundred_test_patients_are_not_called_small(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=())
    rows = [{"method": "eag_rl", "auroc": 0.7, "n": 100}, {"method": "concare", "n": 20}]
    (run_dir / "evaluate").mkdir()
    (run_dir / "evaluate" / "results.json").write_text(json.dumps(rows))

    assert "nothing else" not in read_page(run_dir).text


def test_a_sample_has_every_section(page):
    assert "in this run folder yet" not in page.text
    for words in (
        "ROC curves",
        "Precision-recall curves",
        "AUROC: EAG-RL minus ...",
        "Calibration",
        "ConCare, same patients",
        "values outside the plausible range",
        "Do two experts name the same features?",
        "Does the expert name the true features?",
        "Risk against the truth",
        "What the expert looks at",
        "Deletion: first named masked first",
        "Insertion: first named given back first",
        "Calibration on the test split",
        "Fewer than 30 readable answers, so no curve: Vanilla",
        "Cache hit rate",
        "94.0 %",
        "One search tree",
        "Does usefulness predict Q?",
        "Finals and the usefulness vote",
        "Trajectories per patient",
        "What the model did wrong",
        "Best trajectories",
        "8 optimizer steps",
        "held-out patients",
        "Useful tokens per second",
        "k3 estimate",
        "Policy version",
        "Seconds per step",
        "Seconds per stage",
        "Resolved configuration",
    ):
        assert words in page.text


def test_a_sample_shows_how_much_of_the_trained_change_is_served(page):
    assert "Served share of the trained change" in page.text
    assert "step 2: canary prompt 0.9800" in page.text
    assert "step 1: canary prompt 0.9900" not in page.text
    assert "step 6: trained, root mean square 0.1200" in page.text
    assert "step 6: served minus trained, mean 0.0060" in page.text


@pytest.mark.parametrize("count", range(len(STAGES)))
def test_a_run_that_stopped_early_names_the_next_command(tmp_path, count):
    run_dir = write_sample_run(tmp_path / "run", stages=STAGES[:count])

    page = read_page(run_dir)

    assert page.open == []
    assert f"eag-rl {STAGES[count]} CONFIG --run-dir {run_dir}" in page.text
    for done in STAGES[: min(count, 5)]:
        assert f"eag-rl {done} CONFIG" not in page.text


def test_cohort_and_expert_alone_show_salience_and_truth(tmp_path):
    page = read_page(write_sample_run(tmp_path / "run", stages=("cohort", "expert")))

    assert "What the expert looks at" in page.text
    assert "test patients by rising predicted risk" in page.text
    assert "Risk against the truth" in page.text
    assert "The configuration tests the language model on 16 patients." in page.text


def test_a_run_without_deletion_curves_leaves_them_out(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort", "expert"))
    (run_dir / "expert" / "deletion.json").unlink()

    page = read_page(run_dir)

    assert "Deletion:" not in page.text
    assert "Do two experts name the same features?" in page.text


def test_salience_with_a_gap_is_named_and_the_rest_is_shown(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort", "expert"))
    path = run_dir / "expert" / "salience.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)

    page = read_page(run_dir)

    assert "expert/salience.parquet has no stability curve" in page.text
    assert "Do two experts name the same features?" not in page.text
    assert "What the expert looks at" in page.text


def test_curves_of_ehr_models_stand_once(tmp_path):
    run_dir = write_sample_run(tmp_path / "run")
    with_expert = read_page(run_dir)
    (run_dir / "expert" / "predictions.parquet").unlink()
    without = read_page(run_dir)

    for page in (with_expert, without):
        labels = [value for name, value in page.attributes if name == "aria-label"]
        assert labels.count("Calibration of ConCare") == 1
    assert "below the expert" in with_expert.text
    assert "below the expert" not in without.text


def test_a_stage_that_is_switched_off_is_not_asked_for(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort",))
    config = json.loads((run_dir / "config.json").read_text())["config"]
    change_json(run_dir / "config.json", config=config | {"sft": {"enabled": False}})

    page = read_page(run_dir)

    assert page.text.count("Switched off by this run's configuration: sft.enabled: false") == 2
    assert "eag-rl grpo CONFIG" in page.text


def test_the_sft_row_has_a_section_where_a_run_trained_it(tmp_path):
    run_dir = write_sample_run(tmp_path / "run")
    without = read_page(run_dir)
    (run_dir / "direct_sft").mkdir()
    (run_dir / "direct_sft" / "metrics.jsonl").write_bytes(
        (run_dir / "sft" / "metrics.jsonl").read_bytes()
    )

    page = read_page(run_dir)

    assert "fine-tuning on direct predictions" in page.text
    assert page.text.count("8 optimizer steps") == 2
    assert "direct predictions" not in without.text


def test_a_chosen_step_is_said_with_the_curve_it_was_chosen_from(tmp_path):
    curve = [{"step": step, "auroc": 0.6 + step / 50, "score": 0.61} for step in range(1, 7)]
    chosen = {"step": 6, "pooled": True, "num_patients": 20, "num_positives": 8, "curve": curve}
    (tmp_path / "grpo").mkdir()
    lines = [json.dumps({"step": step, "reward/mean": -0.5}) + "\n" for step in range(1, 7)]
    (tmp_path / "grpo" / "metrics.jsonl").write_text("".join(lines))
    without = read_page(tmp_path)
    (tmp_path / "grpo" / "selection.json").write_text(json.dumps(chosen))

    page = read_page(tmp_path)

    assert "Stage 2 keeps step 6 by AUROC on 20 validation patients (8 positive)" in page.text
    assert "Validation patients" in page.text
    assert "score that chooses" in page.text
    assert "Stage 2 keeps" not in without.text
    assert "score that chooses" not in without.text


def test_an_empty_folder_still_has_a_page(tmp_path):
    page = read_page(tmp_path)

    assert page.open == []
    assert tmp_path.name in page.text
    assert page.text.count("in this run folder yet") == 9


def test_what_models_and_data_say_is_never_markup(tmp_path):
    run_dir = write_sample_run(tmp_path / "run")
    change_json(
        run_dir / "config.json",
        name=EVIL,
        commit=EVIL,
        versions={EVIL: EVIL},
        model={
            "name": EVIL,
            "source": EVIL,
            "sha256": EVIL,
            "description": EVIL,
        },
    )
    change_json(run_dir / "cohort" / "summary.json", dropped={EVIL: 3})
    change_json(run_dir / "sft" / "stage.json", state=EVIL)
    change_json(run_dir / "expert" / "deletion.json", method=EVIL, num_patients=EVIL)
    for path in (run_dir / "search" / "trees").glob("*.json"):
        tree = json.loads(path.read_text())
        for node in tree["nodes"]:
            node |= {"question": EVIL, "answer": EVIL}
        path.write_text(json.dumps(tree | {"patient_id": EVIL}))
    change_text(run_dir / "search" / "trajectories.parquet", "text", f"<Answer 1>{EVIL}")
    change_text(run_dir / "search" / "trajectories.parquet", "patient_id", EVIL)
    predictions = run_dir / "evaluate" / "predictions.parquet"
    change_text(predictions, "text", EVIL)
    table = pd.read_parquet(predictions)
    table["features"] = [[EVIL, "pH"]] * len(table)
    table["salient"] = [[EVIL, "Glucose"]] * len(table)
    table["patient_id"] = table["patient_id"] + EVIL
    table.to_parquet(predictions)
    salience = run_dir / "expert" / "salience.parquet"
    table = pd.read_parquet(salience)
    table["feature"] = table["feature"] + EVIL
    table.to_parquet(salience)
    results = [{"method": EVIL, "auroc": 0.5, "n": 3}]
    (run_dir / "evaluate" / "results.json").write_text(json.dumps(results))
    (run_dir / "grpo" / "metrics.jsonl").write_text(json.dumps({"step": 1, EVIL: 2.0}) + "\n")

    page = read_page(run_dir)

    assert page.open == []
    assert "img" not in page.tags
    assert page.tags.count("script") == 2
    data, script = page.scripts
    trees = json.loads(data)["trees"]
    assert {patient for patient, _ in trees} == {EVIL}
    assert {node[1] for _, nodes in trees for node in nodes} == {EVIL}
    assert EVIL not in data
    assert script == explorer_script()
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert('x')</script>") > 20


def change_text(path, column, text):
    table = pd.read_parquet(path)
    table[column] = text
    table.to_parquet(path)


def test_missing_values_are_dashes(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort",))
    (run_dir / "evaluate").mkdir()
    rows = [{"method": "eag_rl", "auroc": None, "brier": "odd", "n": None}]
    (run_dir / "evaluate" / "results.json").write_text(json.dumps(rows))
    change_json(run_dir / "cohort" / "summary.json", splits={"train": {}, "val": None})

    page = read_page(run_dir)

    assert "EAG-RL " + " ".join(["\u2013"] * 8) in page.text
    assert "train \u2013 \u2013 \u2013 \u2013 (\u2013)" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_unreadable_files_are_named_and_the_rest_is_shown(tmp_path):
    run_dir = write_sample_run(tmp_path / "run")
    (run_dir / "search" / "ledger.json").write_text('{"patients": 6, ')
    (run_dir / "evaluate" / "results.json").write_text('{"not": "a list"}')
    (run_dir / "expert" / "salience.parquet").write_bytes(b"PAR1 cut off")
    pd.DataFrame({"patient_id": ["a"]}).to_parquet(run_dir / "cohort" / "truth.parquet")
    with (run_dir / "grpo" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "reward/me')

    page = read_page(run_dir)

    assert "search/ledger.json cannot be read" in page.text
    assert "evaluate/results.json holds a dict instead of a list" in page.text
    assert "expert/salience.parquet cannot be read" in page.text
    assert "cohort/truth.parquet lacks the columns true_risk" in page.text
    assert "grpo/metrics.jsonl has 1 unreadable line" in page.text
    assert "6 steps: one rollout batch" in page.text


def test_a_step_that_a_resumed_run_repeats_counts_once(tmp_path):
    (tmp_path / "grpo").mkdir()
    lines = [{"step": 1, "reward/mean": 1.0}, {"step": 1, "reward/mean": 2.0}, {"step": 2}]
    (tmp_path / "grpo" / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))

    rows = read_run(tmp_path).grpo

    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["reward/mean"] == 2.0


def test_a_text_with_half_a_surrogate_pair_is_written(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "half \\ud83d", "config": {"x": "\\ud83d"}}')

    assert "half \ufffd" in read_page(tmp_path).text


def prediction(method, patient, label, **more):
    row = {"method": method, "patient_id": patient, "label": label, "probability": 0.4}
    return row | {"parse_failed": False, "text": "t", "features": [], "salient": []} | more


def test_the_case_is_the_first_readable_positive_patient():
    methods = ("question_decomposition", "eag_rl")
    rows = [
        prediction(method, patient, label, parse_failed=patient == "b")
        for method in methods
        for patient, label in (("a", 0), ("b", 1), ("c", 1), ("d", 1))
    ]

    case = compare_case(rows)

    assert case is not None
    assert case.patient_id == "c"
    assert case.label == 1


def test_overlap_with_the_expert_is_told_as_in_the_papers_table():
    salient = ["a", "b", "c", "d", "e"]
    rows = [
        prediction(
            "question_decomposition", "p", 1, features=["a", "b", "x", "y", "z"], salient=salient
        ),
        prediction("stage1", "p", 1, features=["a", "b", "c", "c", "x"], salient=salient),
    ]

    case = compare_case(rows)

    assert case is not None
    assert [answer.overlap for answer in case.answers] == ["2 of 8", "3 of 6"]
    assert math.isclose(jaccard(salient, ["a", "b", "x", "y", "z"]), 2 / 8)
    assert [feature.is_salient for feature in case.answers[1].features] == [True, True, True, False]


def test_an_unreadable_answer_shows_no_probability():
    rows = [
        prediction("question_decomposition", "p", 1, parse_failed=True),
        prediction("eag_rl", "p", 1),
    ]

    case = compare_case(rows)

    assert case is not None
    assert case.answers[0].probability is None
    assert case.answers[1].probability == 0.4


def test_of_several_answers_the_case_shows_the_first_ones_own():
    several = {"sample_probabilities": [0.9, 0.4], "sample_failed": [False, True]}
    unreadable = {"sample_probabilities": [0.4, 0.9], "sample_failed": [True, False]}
    rows = [
        prediction("question_decomposition", "p", 1, **unreadable),
        prediction("eag_rl", "p", 1, **several),
    ]

    case = compare_case(rows)

    assert case is not None
    assert [answer.probability for answer in case.answers] == [None, 0.9]
    assert [answer.parse_failed for answer in case.answers] == [True, False]


def test_without_two_answers_there_is_no_case():
    assert compare_case([prediction("eag_rl", "p", 1)]) is None
    assert compare_case([prediction("question_decomposition", "p", 1)]) is None
    assert (
        compare_case([prediction("eag_rl", "p", 1), prediction("question_decomposition", "q", 1)])
        is None
    )


def test_best_path_and_questions_of_the_largest_tree_are_listed(page, sample):
    trees = list(read_run(sample).trees.read([]))
    largest = max(trees, key=lambda tree: sum(node["visit_count"] > 0 for node in tree["nodes"]))

    assert f"Patient {largest['patient_id']} , of {len(trees)} searched" in page.text
    assert "\u2605" in page.text
    assert re.search(r"#1\s", page.text)


def test_grounding_is_a_table_of_the_rows_with_prose(page, tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort",))
    (run_dir / "evaluate").mkdir()
    rows = [{"method": "eag_rl", "auroc": 0.5, "num_checked_claims": None}]
    (run_dir / "evaluate" / "results.json").write_text(json.dumps(rows))

    assert "Grounding in the record Method Checked claims Wrong claims Error rate" in page.text
    assert "EAG-RL 24 3 12.5 % 5" in page.text
    assert "Vanilla 24 3" not in page.text
    assert "Grounding in the record" not in read_page(run_dir).text


def test_faithfulness_is_a_table_of_the_rows_that_were_tested(page, tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("cohort",))
    (run_dir / "evaluate").mkdir()
    rows = [{"method": "eag_rl", "auroc": 0.5, "faithfulness": None}]
    (run_dir / "evaluate" / "results.json").write_text(json.dumps(rows))

    cells = "EAG-RL 0.110 0.040 0.070 [-0.010, 0.150] 50.0 % 25.0 % 4 2: no recorded feature"
    assert cells in page.text
    assert "Vanilla 0.110" not in page.text
    assert "Faithfulness of the named features" not in read_page(run_dir).text


def test_the_report_says_what_a_difference_could_have_shown(page):
    assert "detectable from 0.386" in page.text
    assert "inside the pale band" in page.text
