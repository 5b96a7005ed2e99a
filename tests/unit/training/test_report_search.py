import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from ehr.salience.table import stored_salience
from tests.report_page import EVIL, read_page
from tests.run_folder_sample import write_sample_run
from tests.typed import known
from training.report.overview import switched_off
from training.report.records import RunRecords, TreeFiles, read_run
from training.report.search import (
    ledger_tiles,
    search_section,
    search_value,
    vote_tiles,
)
from training.report.search_numbers import tree_numbers
from training.report.search_trajectories import best_trajectories, salient_of, trajectory_steps
from training.report.search_tree import MAX_DEPTH, read_tree, tree_figure


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sample"
    return read_run(write_sample_run(folder, stages=("search",)))


def section_of(records, **changes):
    section, problems = search_section(dataclasses.replace(records, **changes))
    assert section is not None
    return section, problems


def titles(section):
    return [figure.title for group in section["figures"].values() for figure in group]


def test_before_its_stage_there_is_no_section():
    assert search_section(RunRecords()) == (None, [])


def test_every_searched_patient_can_be_explored(records):
    section, problems = section_of(records)

    assert problems == []
    assert section["explorer"].num_trees == section["num_trees"] == len(records.trees.names)
    assert section["empty"] == []
    data = json.loads(section["explorer"].data)
    assert data["trees"][data["first"]][0] == section["tree"].patient_id


def test_finals_show_the_parts_of_their_reward(records):
    section, _ = section_of(records)
    data = json.loads(section["explorer"].data)

    finals = [node for _, nodes in data["trees"] for node in nodes if node[7] is not None]

    assert len(finals) == len(records.trajectories)
    for node in finals:
        assert node[7] == pytest.approx(0.6 * node[8]["cls"] + 0.4 * node[8]["att"], abs=2e-4)


def test_a_search_with_rewards_says_r(records):
    section, _ = section_of(records)

    assert titles(section)[:3] == ["R", "R_cls, of the prediction", "R_att, of the named features"]
    assert not section["value"].is_label_free


LABEL_FREE = "value (usefulness + expert agreement), no label used"


@pytest.mark.parametrize("where", ["ledger", "table", "configuration"])
def test_a_search_without_labels_is_called_so_and_has_no_r_cls(records, where):
    rows = [dict(row, reward_cls=np.nan) for row in records.trajectories]
    if where == "table":
        rows = [dict(row, value_kind="label_free") for row in rows]
    ledger = dict(records.ledger, **({"value": "label_free"} if where == "ledger" else {}))

    config = {"search": {"value": "label_free"}} if where == "configuration" else {}

    section, _ = section_of(
        records, trajectories=rows, ledger=ledger, config=dict(records.config, config=config)
    )

    assert titles(section)[:2] == [LABEL_FREE, "expert agreement (R_att)"]
    assert not [title for title in titles(section) if "R_cls" in title]
    assert "value, no label used" in section["figures"]["rewards"][0].svg
    assert "by construction" in section["figures"]["usefulness"][1].note
    data = json.loads(section["explorer"].data)
    assert (data["letter"], data["name"]) == ("V", LABEL_FREE)
    assert "mean V" in section["tree"].figure.note
    assert " R " not in str(section["tree"].figure.svg)


def test_the_page_of_a_search_without_labels_says_so_wherever_it_shows_values(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("search",))
    path = run_dir / "search" / "ledger.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": "label_free"}))

    page = read_page(run_dir)

    assert "Expert-guided search, without labels" in page.text
    assert "No label entered this search." in page.text
    assert page.text.count(LABEL_FREE) >= 3
    assert "R_cls" not in page.text
    assert "kept for SFT" not in page.text
    assert "Trajectories 36 12 kept, found without labels" in page.text


def test_a_search_without_labels_is_not_switched_off_with_sft():
    config = {"sft": {"enabled": False}, "search": {"value": "label_free"}}

    assert switched_off(RunRecords(config={"config": config})) == {"sft": "sft.enabled: false"}


def test_a_ledger_with_rewards_is_no_label_free_search():
    assert not search_value(RunRecords(ledger={"value": "reward"})).is_label_free
    assert not search_value(RunRecords(ledger={})).is_label_free


def test_the_vote_is_counted_over_all_trees():
    tree = read_tree(
        {
            "nodes": [
                {"id": 0, "parent": None, "visit_count": 3, "q": 0.1},
                {"id": 1, "parent": 0, "usefulness": 0.9, "visit_count": 1, "q": 0.0},
                {"id": 2, "parent": 0, "usefulness": 0.8, "visit_count": 2, "terminal": True},
            ]
        }
    )

    tiles = {label: (number, remark) for label, number, remark in vote_tiles([tree_numbers(tree)])}

    assert tiles["Finals proposed"] == ("1 (100.0 %)", "of 1 expansions")
    assert tiles["Finals that lost the vote"][0] == "1 (100.0 %)"
    assert tiles["Lost, visited later"] == ("1 (100.0 %)", "of 1 finals that lost")
    assert tiles["Nothing new"][0] == "2 (66.7 %)"
    assert vote_tiles([]) == []


def test_patients_without_a_kept_trajectory_are_counted(records):
    rows = [dict(row, kept=bool(row["patient_id"] != "S0001")) for row in records.trajectories]

    section, _ = section_of(records, trajectories=rows, ledger=None)

    assert section["patients"] == "1 of 6 patients have no kept trajectory."


def test_an_empty_table_and_no_trees_are_said(records):
    section, problems = section_of(
        records, trajectories=[], ledger=None, trees=TreeFiles(records.trees.run_dir, ())
    )

    assert section["empty"] == ["The trajectories table has no rows."]
    assert section["explorer"] is section["tree"] is None
    assert titles(section) == []
    assert problems == []


def test_rewards_that_are_no_numbers_are_said(records):
    nothing = {"reward": np.nan, "reward_cls": None, "reward_att": np.inf}
    rows = [dict(row, **nothing) for row in records.trajectories]

    section, _ = section_of(records, trajectories=rows)

    assert section["empty"] == ["No trajectory in the table has a number as its reward."]
    assert "R" not in titles(section)
    assert section["best"][0].reward is None


def test_damaged_trees_are_named_and_the_others_are_shown(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("search",))
    folder = run_dir / "search" / "trees"
    for number in range(5):
        (folder / f"A{number}.json").write_text('{"patient_id": ')
    (folder / "B.json").write_text('{"patient_id": "b", "nodes": [{"id": [1], "parent": {}}, 3]}')
    (folder / "C.json").write_text(
        '{"patient_id": "c", "nodes": [{"id": 0, "parent": null, "visit_count": 1, "q": NaN, '
        '"reward": Infinity, "usefulness": "much", "question": 7, "answer": [1], "path": 5}]}'
    )

    section, problems = search_section(read_run(run_dir))

    assert section is not None
    assert section["num_trees"] == 7
    assert len(problems) == 4
    assert problems[-1] == "2 more files in search/trees/ cannot be read."


def test_only_damaged_trees_leave_a_page_that_says_so(tmp_path):
    folder = tmp_path / "search" / "trees"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"patient_id": "a", "nodes": []}')
    (folder / "b.json").write_text("[]")

    page = read_page(tmp_path)

    assert "No tree in search/trees/ has a root" in page.text
    assert "search/trees/b.json holds a list instead of an object" in page.text
    assert "script" not in page.tags


def test_an_old_run_folder_is_shown(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("search",))
    table = pd.read_parquet(run_dir / "search" / "trajectories.parquet")
    old = ["patient_id", "rank", "text", "token_ids", "reward", "reward_cls", "reward_att", "kept"]
    table[old].to_parquet(run_dir / "search" / "trajectories.parquet")
    ledger = run_dir / "search" / "ledger.json"
    ledger.write_text(json.dumps({"patients": 6, "requests": 214, "invalid_scores": 1}))

    page = read_page(run_dir)

    assert "usefulness score unreadable twice, 50 stands for it 1 \u2013 \u2013" in page.text
    assert "Trajectories per patient" in page.text
    assert "Best trajectories" in page.text
    assert page.open == []


def test_a_chain_without_end_is_cut_and_drawn():
    rows = [
        {"id": i, "parent": i - 1 if i else None, "question": str(i), "visit_count": 1}
        for i in range(3000)
    ]

    nodes = read_tree({"nodes": rows})

    assert len(nodes) == MAX_DEPTH + 1
    assert "Search tree" in tree_figure(nodes).svg


def test_a_large_cohort_makes_a_page_of_bounded_size(tmp_path):
    folder = tmp_path / "search" / "trees"
    folder.mkdir(parents=True)
    tree = {
        "nodes": [
            {"id": i, "parent": i - 1 if i % 40 else None if not i else 0, "visit_count": 1}
            | {"question": "q" * 200, "answer": "a" * 600, "usefulness": 0.5, "q": 0.1}
            for i in range(160)
        ]
    }
    text = json.dumps(tree | {"patient_id": "ID"})
    for number in range(60):
        (folder / f"{number}.json").write_text(text.replace("ID", f"{number:03}"))

    section, _ = search_section(read_run(tmp_path))

    assert section is not None
    explorer = section["explorer"]
    assert explorer.num_trees + explorer.num_left_out == section["num_trees"] == 60
    assert explorer.num_left_out > 0
    assert len(explorer.data.encode()) < explorer.max_bytes + 1000


TEXT = """<Subquestion 1>
Is it low?
</Subquestion 1>
<Answer 1>
It is.
</Answer 1>
<Final subquestion>
Now the probability can be estimated.
</Final subquestion>
<Important Features>
pH, Glucose
</Important Features>
<Final answer>
0.8
</Final answer>"""


def test_a_trajectory_is_read_step_by_step():
    first, final = trajectory_steps(TEXT)

    assert (first.label, first.question) == ("Step 1", "Is it low?")
    assert [part.text for part in first.parts] == ["It is."]
    assert (final.label, final.question) == ("Final", "Now the probability can be estimated.")
    assert [(part.label, part.text) for part in final.parts] == [
        ("Important features", "pH, Glucose"),
        ("Final answer", "0.8"),
    ]


def test_a_text_without_tags_is_one_step_and_an_empty_one_none():
    assert [part.text for part in trajectory_steps(EVIL)[0].parts] == [EVIL]
    assert trajectory_steps("") == ()


def test_names_that_the_expert_has_too_are_marked():
    row = {"patient_id": "p", "text": TEXT, "reward": 0.2, "reward_cls": -0.1, "reward_att": 0.3}
    row |= {"kept": True, "features": ["Glucose", "pH"]}

    (best,) = best_trajectories([row], {"p": ("pH", "Weight")})
    (unknown,) = best_trajectories([row], {})

    assert [(item.name, item.is_salient) for item in best.features] == [
        ("Glucose", False),
        ("pH", True),
    ]
    assert best.missed == ("Weight",)
    assert unknown.missed == ()


def test_the_experts_features_are_those_that_rewards_were_made_of(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("expert", "search"))
    records = read_run(run_dir)

    salient = salient_of(records, ["S0001", "S0003", "nobody"])

    stored = stored_salience(known(records.salience), ["S0001", "S0003"], 5, "observed")
    assert {patient: frozenset(names) for patient, names in salient.items()} == {
        patient: salience.features for patient, salience in stored.items()
    }
    assert salient_of(dataclasses.replace(records, salience=None), ["S0001"]) == {}


def test_hits_of_the_prefix_cache_are_a_share_of_the_prompt_tokens():
    tiles = {label: number for label, number, _ in ledger_tiles({"prefill_tokens": 200})}
    known = {"prefill_tokens": 200, "prefill_computed_tokens": 10}

    assert tiles["Cache hit rate"] == "\u2013"
    assert ("Cache hit rate", "95.0 %", "10 tokens computed") in ledger_tiles(known)


def test_plain_answers_are_called_so_and_have_no_vote(tmp_path):
    run_dir = write_sample_run(tmp_path / "run", stages=("search",))
    path = run_dir / "search" / "ledger.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "samples"}))

    page = read_page(run_dir)

    assert "The best of plain answers" in page.text
    assert "Samples instead of trees" in page.text
    assert "Expert-guided search" not in page.text
    assert "usefulness vote" not in page.text
