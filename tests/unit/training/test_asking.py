import pandas as pd
import pytest

from training.evaluation.asking import kept_or_made
from training.evaluation.methods import prompt_kind

TABLE = pd.DataFrame({"patient_id": ["p"], "probability": [0.4], "unjudged": [None]})


def never():
    raise AssertionError("asked again")


def test_answers_of_an_interrupted_evaluation_are_not_asked_for_again(tmp_path):
    part = tmp_path / "parts" / "eag_rl.masked.parquet"

    made = kept_or_made(part, lambda: TABLE)
    kept = kept_or_made(part, never)

    assert list(kept["probability"]) == list(made["probability"]) == [0.4]
    assert list(kept["unjudged"].isna()) == [True]
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_answers_that_were_never_finished_are_not_kept(tmp_path):
    with pytest.raises(AssertionError, match="asked again"):
        kept_or_made(tmp_path / "parts" / "eag_rl.parquet", never)

    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("method", "trained", "kind"),
    [
        ("vanilla", "short_answer", "vanilla"),
        ("sft", "question_decomposition", "vanilla"),
        ("think_then_answer", "question_decomposition", "think_then_answer"),
        ("think_then_answer_json", "short_answer", "think_then_answer_json"),
        ("question_decomposition", "short_answer", "question_decomposition"),
        ("short_answer", "question_decomposition", "short_answer"),
        ("stage1", "question_decomposition", "question_decomposition"),
        ("stage1", "short_answer", "short_answer"),
        ("stage2", "short_answer", "short_answer"),
    ],
)
def test_trained_policies_are_asked_as_they_were_trained(method, trained, kind):
    assert prompt_kind(method, trained) == kind
