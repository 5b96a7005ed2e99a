import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.errors import DataError
from ehr.salience.agreement import agreement
from ehr.salience.stability import stability_curve
from ehr.salience.table import salient_sets
from ehr.tables import rows

TOKENS = ("d", "a", "c", "b", "Age & Sex")
"""Not in the alphabet's order: equal scores stay in the table's."""


def salience(
    num_members: int = 6,
    num_patients: int = 12,
    num_ensembles: int = 2,
    seed: int = 0,
    noise: float = 1.0,
    all_seen: bool = False,
) -> pd.DataFrame:
    """Members see a patient's own weights through noise; scores in eighths often tie."""
    rng = np.random.default_rng(seed)
    own = rng.gamma(1, 1, (num_patients, len(TOKENS)))
    observed = rng.random((num_patients, len(TOKENS))) < 0.7
    rows = []
    for ensemble in range(num_ensembles):
        for member in range(num_members):
            for patient in range(num_patients):
                scores = own[patient] + noise * rng.gamma(1, 1, len(TOKENS))
                for token, name in enumerate(TOKENS):
                    rows.append(
                        {
                            "patient_id": f"p{patient}",
                            "split": "train" if patient % 3 else "test",
                            "ensemble": ensemble,
                            "member": member,
                            "out_of_fold": not all_seen
                            and (not patient % 3 or (patient + member) % 2 == 0),
                            "feature": name,
                            "score": round(8 * float(scores[token])) / 8,
                            "observed": bool(observed[patient, token]) or name == "Age & Sex",
                        }
                    )
    return pd.DataFrame(rows)


def measured(table: pd.DataFrame, size: int, candidates: str, split: str):
    ids = sorted(set(table.loc[table["split"] == split, "patient_id"]))
    first, second = (salient_sets(table, size, candidates, number) for number in (0, 1))
    return agreement([first[each] for each in ids], [second[each] for each in ids], size)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    members=st.sampled_from([1, 2, 4, 6, 10]),
    size=st.integers(1, 4),
    candidates=st.sampled_from(["observed", "paper"]),
    split=st.sampled_from(["train", "test"]),
)
def test_with_all_members_the_curve_ends_at_the_agreement_of_the_salient_sets(
    seed: int, members: int, size: int, candidates: str, split: str
) -> None:
    table = salience(members, seed=seed, all_seen=members == 1)

    curve = stability_curve(table, size, candidates, split)

    expected = measured(table, size, candidates, split)
    assert curve[-1].num_members == members
    assert curve[-1].num_choices == 1
    for name in ("jaccard", "jaccard_permuted", "jaccard_constant", "kappa"):
        value = getattr(expected, name)
        assert getattr(curve[-1].agreement, name) == (
            None if value is None else pytest.approx(value, abs=1e-6)
        )


@settings(max_examples=25)
@given(seed=st.integers(0, 999), members=st.sampled_from([2, 4, 8]))
def test_the_order_of_the_rows_does_not_matter(seed: int, members: int) -> None:
    # Equal scores follow the table's order of features, so these have none.
    table = salience(members, seed=seed)
    table["score"] = np.random.default_rng(seed).random(len(table))
    shuffled = table.sample(frac=1, random_state=seed)

    curve, other = (stability_curve(each, 2, "observed") for each in (table, shuffled))

    for point, same in zip(curve, other, strict=True):
        assert point.agreement.jaccard == pytest.approx(same.agreement.jaccard)
        assert point.agreement.jaccard_permuted == pytest.approx(
            same.agreement.jaccard_permuted, abs=1e-6
        )


def test_one_pair_of_two_is_the_mean_over_both_pairs() -> None:
    table = salience(4)
    parts = [rows(table, table["member"] // 2 == pair) for pair in (0, 1)]
    alone = [measured(part, 2, "observed", "train").jaccard for part in parts]

    first, last = stability_curve(table, 2, "observed")

    assert (first.num_members, first.num_choices, last.num_members) == (2, 2, 4)
    assert first.agreement.jaccard == pytest.approx(np.mean(alone))
    assert (first.jaccard_low, first.jaccard_high) == pytest.approx((min(alone), max(alone)))


def test_members_that_see_through_noise_agree_more_when_there_are_more_of_them() -> None:
    curve = stability_curve(salience(12, num_patients=90, noise=3.0), 2, "paper")

    heights = [point.agreement.jaccard for point in curve]
    assert [point.num_members for point in curve] == [2, 4, 6, 8, 10, 12]
    assert heights[-1] > heights[0] + 0.05
    assert all(point.agreement.num_patients == 60 for point in curve)


def test_one_ensemble_or_no_patient_has_no_curve() -> None:
    assert stability_curve(salience(num_ensembles=1), 2, "observed") == []
    assert stability_curve(salience(), 2, "observed", split="val") == []


def test_a_missing_score_and_different_patients_are_refused() -> None:
    table = salience()
    gap = table.drop(index=rows(table, table["patient_id"] == "p1").index[3])
    one_sided = rows(table, (table["ensemble"] == 0) | (table["patient_id"] != "p1"))

    with pytest.raises(DataError, match="'b' for patient 'p1'"):
        stability_curve(gap, 2, "observed")
    with pytest.raises(DataError, match="for patient 'p1'"):
        stability_curve(one_sided, 2, "observed")
