import re

import numpy as np
import pandas as pd
import pytest

from ehr.salience.agreement import Agreement
from ehr.salience.stability import StabilityPoint
from training.report.calibration import MIN_PATIENTS, calibration_figures, too_few_note
from training.report.chart import GREEN, WARM
from training.report.deletion import deletion_figures
from training.report.records import Scores
from training.report.salience import MAX_FEATURES, heat_map_figure, salience_of_test_patients
from training.report.stability import stability_figure


def point(
    num_members: int, jaccard: float, permuted: float | None = 0.1, num_choices: int = 2
) -> StabilityPoint:
    return StabilityPoint(
        num_members=num_members,
        num_choices=num_choices,
        agreement=Agreement(
            jaccard=jaccard,
            jaccard_permuted=permuted,
            jaccard_constant=0.3,
            kappa=None if permuted is None else (jaccard - permuted) / (1 - permuted),
            num_patients=80,
        ),
        jaccard_low=jaccard - 0.02,
        jaccard_high=jaccard + 0.02,
    )


def test_the_stability_curve_has_its_levels_and_kappa_at_each_size() -> None:
    figure = stability_figure([point(2, 0.4), point(4, 0.55)], 0.44)

    assert figure is not None
    for text in ("2 members each, two disjoint ensembles: 0.400", "best constant set: 0.300"):
        assert text in figure.svg
    assert "4 members each, kappa: 0.500" in figure.svg
    assert "4 members each, patients permuted: 0.100" in figure.svg
    assert "kappa 0.50, of test patients 0.44" in figure.note
    assert "80 training patients, each by members that did not see it. Pale bars" in figure.note
    assert stability_figure([], 0.44) is None


def test_one_size_is_drawn_as_dots_and_a_missing_level_is_left_out() -> None:
    figure = stability_figure([point(1, 0.4, permuted=None, num_choices=1)], None)

    assert figure is not None
    assert figure.svg.count("<circle") == 2
    assert "80 training patients, seen by the one member. With all" in figure.note
    assert "kappa \u2013, of test patients \u2013" in figure.note


def curves(**heights: list[object]) -> dict:
    between = {"area": 0.5, "low": 0.4, "high": None}
    lines = {name: {"mean_change_of_log_odds": each} for name, each in heights.items()}
    return {"vs_random": between, "vs_constant": between, **lines}


def test_deletion_curves_are_drawn_where_they_have_numbers() -> None:
    record = {
        "method": "tree_shap",
        "num_patients": 50,
        "deletion": curves(method=[0, 0.5, 0.8], constant=[0, 0.4, "odd"], random=[0, 0.1, 0.2]),
        "insertion": curves(method=[None]),
    }

    deletion, insertion = deletion_figures(record)

    assert deletion is not None
    assert insertion is None
    assert deletion.legend[0].label == "tree shap"
    assert deletion.svg.count(f'fill="{GREEN}"') == 3
    assert deletion.svg.count(f'fill="{WARM}"') == 2
    assert "Area above random orders 0.50 [0.40, \u2013]" in deletion.note
    assert "Mean of 50 training patients" in deletion.note


@pytest.mark.parametrize("record", [{}, {"deletion": 3}, {"deletion": {"method": []}}])
def test_a_record_without_curves_has_no_figure(record: dict) -> None:
    assert deletion_figures(record) == [None, None]


def scores(num_patients: int, num_unreadable: int = 0) -> Scores:
    rng = np.random.default_rng(0)
    probabilities = rng.random(num_patients)
    return Scores(
        patients=tuple(map(str, range(num_patients))),
        labels=(rng.random(num_patients) < probabilities).astype(int),
        probabilities=probabilities,
        is_readable=np.arange(num_patients) >= num_unreadable,
    )


def test_calibration_shows_bins_with_intervals_counts_and_numbers() -> None:
    (figure,) = calibration_figures({"concare": scores(200)})

    assert figure.title == "ConCare"
    assert figure.svg.count("<circle") == 10
    assert len(re.findall(r"observed [\d.]+ \[[\d.]+, [\d.]+\]: \d+ of 20<", figure.svg)) == 20
    counts = re.findall(r"<rect[^>]*><title>[^<]*: (\d+), of which (\d+) events", figure.svg)
    assert counts
    assert figure.note.startswith("n 200, 20 a bin. Brier 0.")
    assert re.search(r"slope [\d.]+, intercept -?[\d.]+\.$", figure.note)


def test_methods_with_few_readable_answers_are_named_instead() -> None:
    answers = {
        "stage1": scores(MIN_PATIENTS, num_unreadable=1),
        "eag_rl": scores(MIN_PATIENTS + 1, num_unreadable=1),
    }

    (figure,) = calibration_figures(answers)

    assert figure.title == "EAG-RL"
    assert too_few_note(answers) == "Fewer than 30 readable answers, so no curve: Stage-1 (29)."
    assert too_few_note({"eag_rl": answers["eag_rl"]}) == ""


def salience(num_features: int, num_candidates: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for patient in range(6):
        known = set(rng.choice(num_features - 1, num_candidates - 1, replace=False).tolist())
        for feature in range(num_features):
            is_age = feature == num_features - 1
            rows.append(
                {
                    "patient_id": f"p{patient}",
                    "split": "test",
                    "ensemble": 0,
                    "member": 0,
                    "out_of_fold": True,
                    "feature": "Age & Sex" if is_age else f"feature {feature}",
                    "score": float(rng.random()),
                    "observed": is_age or feature in known,
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("num_features", "num_lines"), [(9, 9), (21, 21), (22, 20), (74, 20)])
def test_the_heat_map_has_so_many_lines_and_one_for_the_others(
    num_features: int, num_lines: int
) -> None:
    chosen = salience_of_test_patients(salience(num_features, 7), 5, "observed")
    assert chosen is not None

    figure = heat_map_figure(chosen, None)

    assert MAX_FEATURES == 20
    assert figure.svg.count("<rect") == 6 * num_lines
    left = num_features - num_lines
    assert (f"{left} other features" in figure.svg) == bool(left)
    marked = figure.svg.count('fill="#f2b134"')
    others = [int(text) for text in re.findall(r'text-anchor="middle">(\d+)<', figure.svg)]
    assert marked + sum(others) == 6 * 5


def test_a_cell_that_was_never_recorded_is_empty_and_never_marked() -> None:
    table = salience(9, 3)
    chosen = salience_of_test_patients(table, 5, "observed")
    of_all = salience_of_test_patients(table, 5, "paper")
    assert chosen is not None
    assert of_all is not None

    figure, filled = heat_map_figure(chosen, None), heat_map_figure(of_all, None)

    assert figure.svg.count('fill="none"') == figure.svg.count("never recorded") == 6 * 6
    assert figure.svg.count('fill="#f2b134"') == 6 * 3
    assert "a patient has 3 to 3 candidates (median 3)" in figure.note
    assert 'fill="none"' not in filled.svg
    assert "candidates" not in filled.note
