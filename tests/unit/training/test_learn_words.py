"""The sentence under an experiment's table says what its intervals say, and no more."""

from typing import Any

import pytest

from training.experiments.words import shown_sentence


def row(
    minus: str, measure: str, low: float | None, high: float | None, p: float | None = 0.01
) -> dict[str, Any]:
    middle = None if low is None or high is None else (low + high) / 2
    return {
        "arm": "eag_rl",
        "minus": minus,
        "measure": measure,
        "difference": middle,
        "low": low,
        "high": high,
        "p_holm": p,
        "seeds": [17],
    }


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    arms = [{"arm": name} for name in ("untrained", "stage1_grpo", "eag_rl")]
    return {"arms": arms, "differences": list(rows), "reference": "eag_rl", "num_patients": 300}


def test_only_what_is_clear_of_zero_is_shown():
    sentence = shown_sentence(
        results(
            row("untrained", "reward_att", 0.05, 0.09),
            row("stage1_grpo", "reward_att", 0.01, 0.03),
            row("untrained", "auroc_one", -0.02, 0.04),
            row("stage1_grpo", "auroc_one", -0.03, 0.03),
        )
    )

    assert sentence is not None
    shown, _, rest = sentence.partition("Not shown, in either direction: ")
    assert "Untrained (+0.070 [+0.050, +0.090]) and Stage-1 + GRPO (+0.020" in shown
    assert "AUROC" not in shown
    assert "AUROC of one answer) than Untrained (+0.010 [-0.020, +0.040])" in rest
    assert "300 test patients of one cohort, one seed of training" in rest


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.2, -0.1, "the opposite of names nearer"),
        (0.0, 0.1, "EAG-RL has nothing. Not shown, in either direction: names nearer"),
        (None, None, "EAG-RL has nothing. That is"),
    ],
)
def test_a_loss_is_said_and_an_interval_that_touches_zero_shows_nothing(
    low: float | None, high: float | None, words: str
):
    found = shown_sentence(results(row("untrained", "reward_att", low, high)))

    assert found is not None
    assert words in found


@pytest.mark.parametrize("p", [0.05, 0.6, None])
def test_one_clear_interval_among_many_comparisons_shows_nothing(p: float | None):
    found = shown_sentence(results(row("untrained", "auroc_one", 0.001, 0.04, p)))

    assert found is not None
    assert "EAG-RL has nothing. Not shown, in either direction: better risks" in found


def test_where_patients_were_asked_once_the_mean_is_the_one_answer():
    found = shown_sentence(results(row("untrained", "auroc", 0.1, 0.2)))

    assert found is not None
    assert "better risks (AUROC of one answer) than Untrained (+0.150" in found


def test_models_of_the_record_and_no_comparison_at_all_are_no_subject():
    assert shown_sentence(results(row("concare", "auroc", 0.1, 0.2))) is None
    assert shown_sentence(results()) is None
