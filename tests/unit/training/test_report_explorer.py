import base64
import hashlib
import json

import pytest

from tests.report_page import EVIL
from tests.typed import known
from training.report.search_explorer import (
    MAX_TEXT,
    ExplorerTrees,
    explorer_script,
    safe_json,
)
from training.report.search_tree import read_tree

TREE = {
    "patient_id": "p",
    "nodes": [
        {"id": 0, "parent": None, "path": [], "visit_count": 2, "q": -0.123456},
        {"id": 1, "parent": 0, "path": [0], "question": "Why?", "usefulness": 0.25},
        {
            "id": 2,
            "parent": 0,
            "path": [1],
            "question": "End",
            "answer": "pH, Glucose\n</Important Features>\n<Final answer>\n0.7\n</Final answer>",
            "visit_count": 2,
            "q": -0.123456,
            "usefulness": 0.5,
            "score_is_neutral": True,
            "terminal": True,
            "reward": -0.123456,
            "on_best_path": True,
        },
    ],
}
ROW = {
    "patient_id": "p",
    "path": "1",
    "reward": -0.12,
    "reward_cls": -0.5,
    "reward_att": 0.25,
    "kept": True,
    "readable": True,
    "probability": 0.7,
    "features": ["pH"],
}


def explorer(trees, rows=(), **more):
    gathered = ExplorerTrees(rows, letter="R", name="R", kept="kept", **more)
    for patient, nodes in trees:
        gathered.add(patient, nodes)
    return known(gathered.finish())


def test_a_node_holds_what_the_script_reads():
    made = explorer([("p", read_tree(TREE))], [ROW])
    root, child, final = json.loads(made.data)["trees"][0][1]

    assert root == [None, "", "", 2, -0.1235, None, 0, None]
    assert child == [0, "Why?", "", 0, None, 0.25, 0, None]
    assert final[2] == "Important features: pH, Glucose\nFinal answer: 0.7"
    assert final[6] == 1 + 2 + 4
    assert final[8] == {
        "cls": -0.5,
        "att": 0.25,
        "probability": 0.7,
        "features": ["pH"],
        "kept": True,
        "readable": True,
    }


def test_a_final_of_another_patient_gets_no_parts():
    made = explorer([("q", read_tree(TREE))], [ROW])

    assert len(json.loads(made.data)["trees"][0][1][2]) == 8


@pytest.mark.parametrize(
    "text",
    [EVIL, "</script>", "<!--<script>", "]]>", "\u2028\u2029", "&lt;", '"\\', "\u202e\u4e2d"],
)
def test_no_text_can_end_the_element_that_holds_it(text):
    made = safe_json({text: text})

    assert json.loads(made) == {text: text}
    assert not set(made) & set("<>&\u2028\u2029")


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


def test_the_page_stays_below_its_budget_and_says_what_is_left_out():
    nodes = read_tree(TREE)
    one = len(safe_json(json.loads(explorer([("p000", nodes)]).data)["trees"][0]).encode())

    made = explorer([(f"p{i:03}", nodes) for i in range(100)], max_bytes=10 * one)

    assert made.num_trees == 10
    assert made.num_left_out == 90
    assert [patient for patient, _ in json.loads(made.data)["trees"]] == [
        f"p{i:03}" for i in range(10)
    ]


def test_the_tree_that_the_page_opens_with_is_never_left_out():
    nodes = read_tree(TREE)
    one = len(safe_json(json.loads(explorer([("p0", nodes)]).data)["trees"][0]).encode())
    gathered = ExplorerTrees((), letter="R", name="R", kept="kept", max_bytes=3 * one)

    for index in range(6):
        gathered.add(f"p{index}", nodes, is_first=index == 4)
    made = known(gathered.finish())
    data = json.loads(made.data)

    assert [patient for patient, _ in data["trees"]] == ["p4", "p0", "p1"]
    assert data["first"] == 0
    assert (made.num_trees, made.num_left_out) == (3, 3)


def test_a_tree_larger_than_the_budget_is_shown_alone():
    gathered = ExplorerTrees((), letter="R", name="R", kept="kept", max_bytes=10)

    gathered.add("p", read_tree(TREE), is_first=True)
    made = known(gathered.finish())

    assert (made.num_trees, made.num_left_out) == (1, 0)


def test_endless_text_is_cut():
    record = {"nodes": [{"id": 0, "parent": None, "question": "x" * (MAX_TEXT + 50)}]}

    made = explorer([("p", read_tree(record))])

    assert json.loads(made.data)["trees"][0][1][0][1] == "x" * MAX_TEXT + "\u2026"


def test_without_a_tree_there_is_nothing_to_explore():
    assert ExplorerTrees((), letter="R", name="R", kept="kept").finish() is None


def test_the_hash_is_that_of_the_script():
    made = explorer([("p", read_tree(TREE))])
    digest = hashlib.sha256(str(made.script).encode()).digest()

    assert made.script_hash == "sha256-" + base64.b64encode(digest).decode()
    assert made.script == explorer_script()


@pytest.mark.parametrize(
    "word",
    ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "fetch",
     "XMLHttp", "import(", "localStorage", "http:", "https:"],
)  # fmt: skip
def test_the_script_makes_no_markup_and_loads_nothing(word):
    assert word not in explorer_script()
