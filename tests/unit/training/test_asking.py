import pandas as pd
import pytest

from training.asking import kept_or_made, prompt_kind

TABLE = pd.DataFrame({"patient_id": ["p"], "probability": [0.4], "unjudged": [None]})


def never():
    raise AssertionError("asked again")


def test_answers_of_an_interrupted_evaluation_are_not_asked_for_again(tmp_path):
    part = tmp_path / "parts" / "eag_rl.masked.parquet"

    made = kept_or_made(part, lambda: TABLE)
    kept = kept_or_made(part, never)

    assert list(kept["probability"]) == list(made["probability"]) == [0.4]
    assert kept["unjudged"].isna().all()
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_answers_that_were_never_finished_are_not_kept(tmp_path):
    with pytest.raises(AssertionError, match="asked again"):
        kept_or_made(tmp_path / "parts" / "eag_rl.parquet", never)

    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("vanilla", "vanilla"),
        ("sft", "vanilla"),
        ("think_then_answer", "think_then_answer"),
        ("question_decomposition", "question_decomposition"),
        ("stage1", "question_decomposition"),
        ("stage2", "question_decomposition"),
    ],
)
def test_trained_policies_are_asked_as_they_were_trained(method, kind):
    assert prompt_kind(method) == kind
