import pytest

from benchmarks.salience import study, table
from tests.expert_cohort import tiny_cohort, tiny_section

COHORT = tiny_cohort()


pytestmark = pytest.mark.slow  # fits every method of two ensembles


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return study(COHORT, tiny_section(), ("logistic_regression", "tree_shap"), "train")


def test_the_study_has_a_row_a_method_and_one_for_their_vote(rows: list[dict]) -> None:
    assert [row["method"] for row in rows] == ["logistic_regression", "tree_shap", "vote"]
    assert {row["members"] for row in rows} == {10}
    assert all(row["kappa"] is not None and row["truth"] is not None for row in rows)
    assert table(rows).count("\n") == 4


@pytest.mark.parametrize("judge", ["own", "forest", "gaussian_process"])
@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_methods_that_know_the_signal_beat_random_orders(
    rows: list[dict], judge: str, kind: str
) -> None:
    for row in rows:
        between = row["judges"][judge][kind]["vs_random"]
        assert between["low"] <= between["area"] <= between["high"]
        assert between["area"] > 0
        steps = row["judges"][judge][kind]["method"]
        assert len(steps["auroc"]) == len(steps["mean_change_of_log_odds"]) == 6
        assert steps["mean_change_of_log_odds"][0] == 0


def test_the_methods_share_the_common_judges_random_curves(rows: list[dict]) -> None:
    first, *others = [row["judges"]["forest"]["deletion"]["random"] for row in rows]

    assert all(other == first for other in others)
    own = [row["judges"]["own"]["deletion"]["random"] for row in rows]
    assert own[0] != own[1]
