import re

import numpy as np
import pytest

from training.report.figures import (
    UNDETECTABLE,
    difference_figure,
    interval_figure,
    precision_recall_points,
    roc_figure,
    roc_points,
    stage_time_figure,
    thinned,
)
from training.report.records import Scores, scores_by_method
from training.report.search_tree import read_tree, tree_figure
from training.report.text import MAX_CHARACTERS, text_blocks
from training.report.training_curves import (
    Panel,
    curve_points,
    curves_figure,
    grpo_time_parts,
    step_time_figure,
)


def band_width(svg):
    """Width of the pale rectangle."""
    band = re.search(rf'<rect [^>]*width="([\d.]+)"[^>]*fill="{UNDETECTABLE}"', svg)
    assert band is not None
    return float(band.group(1))


def row(method, patient, label, probability, parse_failed=False):
    return {
        "method": method,
        "patient_id": patient,
        "label": label,
        "probability": probability,
        "parse_failed": parse_failed,
    }


def test_roc_of_a_perfect_ranking_goes_through_the_corner():
    points = roc_points(np.array([1, 1, 0, 0]), np.array([0.9, 0.8, 0.3, 0.1]))

    assert points == [(0, 0), (0, 0.5), (0, 1), (0.5, 1), (1, 1)]


def test_roc_takes_tied_predictions_in_one_diagonal_step():
    points = roc_points(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.5, 0.5]))

    assert points == [(0, 0), (1, 1)]


def test_roc_does_not_exist_with_one_class():
    assert roc_points(np.array([1, 1]), np.array([0.5, 0.6])) == []
    assert (
        roc_figure(
            {
                "eag_rl": Scores(
                    patients=("a",),
                    labels=np.array([1]),
                    probabilities=np.array([0.4]),
                    is_readable=np.array([True]),
                )
            }
        )
        is None
    )


def test_precision_recall_starts_at_its_first_precision_and_ends_at_the_base_rate():
    points = precision_recall_points(np.array([0, 1, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1]))

    assert points[0] == (0, 0)
    assert points[-1] == (1, 0.5)
    assert points[2] == (0.5, 0.5)


def test_scores_leave_out_rows_without_a_label_or_a_probability():
    rows = [
        row("concare", "a", 1, 0.9),
        row("concare", "b", None, 0.9),
        row("concare", "c", 0, float("nan")),
        row("vanilla", "a", 1, 0.2),
    ]

    scores = scores_by_method(rows)

    assert list(scores) == ["vanilla", "concare"]
    assert scores["concare"].patients == ("a",)


def test_an_interval_figure_has_only_methods_with_the_metric():
    rows = [{"method": "eag_rl", "auroc": 0.7}, {"method": "stage1", "auroc": None}]

    figure = interval_figure(rows, "auroc", {})

    assert figure is not None
    assert "EAG-RL" in figure.svg
    assert "Stage-1" not in figure.svg
    assert interval_figure(rows, "auprc", {}) is None


def test_differences_are_drawn_with_their_intervals_and_patients():
    row = {"method": "eag_rl", "minus": "stage1", "metric": "auroc", "difference": 0.05, "n": 16}

    figure = difference_figure([row | {"low": -0.1, "high": 0.2}], "auroc")

    assert figure is not None
    assert figure.title == "AUROC: EAG-RL minus ..."
    assert "minus Stage-1: 0.050 [-0.100, 0.200], n 16" in figure.svg
    assert difference_figure([row], "auprc") is None
    assert difference_figure([row | {"difference": None}], "auroc") is None


def test_a_band_shows_which_differences_so_few_patients_cannot_show():
    row = {"method": "eag_rl", "minus": "stage1", "metric": "auroc", "difference": 0.05}

    without = difference_figure([row], "auroc")
    banded = difference_figure([row | {"minimal_detectable": 0.25}], "auroc")
    whole = difference_figure([row | {"minimal_detectable": 3.0}], "auroc")

    assert without is not None
    assert banded is not None
    assert whole is not None
    assert without.svg.count(UNDETECTABLE) == 0
    assert "detectable from 0.250" in banded.svg
    # the axis runs from -1 to 1: the band of .25 is a quarter of the widest one
    assert band_width(banded.svg) == pytest.approx(band_width(whole.svg) / 4, abs=0.1)


def test_thinning_keeps_the_ends():
    points = [(float(index), 0.0) for index in range(1000)]

    kept = thinned(points, most=10)

    assert len(kept) == 10
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_stage_times_follow_the_order_of_the_run():
    stages = {"grpo": {"seconds": 9}, "cohort": {"seconds": 1}, "sft": {"seconds": None}}

    figure = stage_time_figure(stages)

    assert figure is not None
    assert figure.svg.index("cohort") < figure.svg.index("grpo")
    assert "sft" not in figure.svg
    assert stage_time_figure({}) is None


def test_curves_skip_missing_and_odd_values():
    steps = [
        {"step": 2, "a": 1.0},
        {"step": 1, "a": None},
        {"step": 3, "a": "x"},
        {"step": 0, "a": 5},
    ]

    assert curve_points("a", steps) == [(0, 5), (2, 1)]
    assert curves_figure(Panel(title="A", curves=(("b", "b"),)), steps) is None


def test_one_step_is_drawn_as_a_dot():
    figure = curves_figure(Panel(title="A", curves=(("a", "curve"),)), [{"step": 1, "a": 0.5}])

    assert figure is not None
    assert figure.svg.count("<circle") == 1


def test_phases_are_stacked_and_a_missing_phase_counts_as_nothing():
    figure = step_time_figure([{"step": 1, "time/rollout_s": 2.0}, {"step": 2, "time/train_s": 3}])

    assert figure is not None
    assert [entry.label for entry in figure.legend] == ["rollouts", "updates"]
    assert step_time_figure([{"step": 1}]) is None


def test_rollouts_beside_updates_count_with_what_was_waited_for():
    alternating = [{"step": 1, "time/rollout_s": 9.0}]
    overlapping = [{"step": 1, "time/rollout_s": 9.0, "time/rollout_wait_s": 2.0}]

    assert grpo_time_parts(alternating)[0] == ("time/rollout_s", "rollouts")
    assert "time/rollout_s" not in dict(grpo_time_parts(overlapping))
    assert dict(grpo_time_parts(overlapping))["time/rollout_wait_s"] == "waiting for rollouts"


TREE = {
    "nodes": [
        {"id": 0, "parent": None, "visit_count": 2, "q": 0.5, "on_best_path": True},
        {"id": 1, "parent": 0, "question": "Why?", "visit_count": 1, "q": 0.3, "usefulness": 0.9},
        {
            "id": 2,
            "parent": 0,
            "question": "<b>End</b>",
            "visit_count": 1,
            "q": 0.7,
            "terminal": True,
            "reward": 0.7,
            "on_best_path": True,
        },
        {"id": 3, "parent": 0, "question": "Unvisited", "visit_count": 0, "q": None},
        {"id": 9, "parent": 7, "question": "Nobody's child", "visit_count": 4},
    ]
}


def test_a_tree_is_read_from_its_root_and_strays_are_left_out():
    nodes = read_tree(TREE)

    assert [node.question for node in nodes] == ["", "Why?", "<b>End</b>", "Unvisited"]
    assert [node.depth for node in nodes] == [0, 1, 1, 1]
    assert nodes[3].value is None


@pytest.mark.parametrize("record", [{}, {"nodes": None}, {"nodes": [{"id": 1, "parent": 0}]}])
def test_a_record_without_a_root_has_no_nodes(record):
    assert read_tree(record) == []


def test_a_node_that_names_itself_as_parent_ends_the_walk():
    record = {"nodes": [{"id": 0, "parent": None}, {"id": 1, "parent": 0}, {"id": 1, "parent": 1}]}

    assert len(read_tree(record)) == 2


def test_a_drawn_tree_tells_its_questions_and_escapes_them():
    figure = tree_figure(read_tree(TREE))

    assert "#1 Why?" in figure.svg
    assert "&lt;b&gt;End&lt;/b&gt;" in figure.svg
    assert "R 0.70" in figure.svg
    assert figure.is_wide


def test_text_is_parted_at_tags_and_loses_nothing_else():
    blocks = text_blocks("before<Subquestion 1>\nWhy?\n</Subquestion 1><ANSWER 1>So <b>x</b>")

    assert [(block.label, block.text) for block in blocks] == [
        ("", "before"),
        ("Subquestion 1", "Why?"),
        ("Answer 1", "So <b>x</b>"),
    ]


def test_text_without_tags_is_one_block_and_an_empty_one_none():
    assert [block.text for block in text_blocks("0.35")] == ["0.35"]
    assert text_blocks("  \n") == []


def test_a_very_long_text_is_cut_and_says_so():
    blocks = text_blocks("x" * (MAX_CHARACTERS + 1234))

    assert len(blocks[0].text) == MAX_CHARACTERS
    assert "1,234 more characters" in blocks[1].text


def test_characters_without_a_picture_are_marked():
    assert text_blocks("a\x00b\ud800c")[0].text == "a\ufffdb\ufffdc"
