"""A CSV of your own, and which features an expert finds salient for each patient.

`python examples/own_cohort.py [FILE.csv]`: one row a visit, with the columns patient_id, date, age,
sex (female, male or empty), outcome (0 or 1, the same in all rows of a patient); every other column
is a feature, empty where nothing was measured. Without a file a made-up one is written and read.
"""

# pandas annotates results of grouping too widely for the checker.
# pyright: reportGeneralTypeIssues=false
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from ehr.cohorts.loaders import (
    Cohort,
    Feature,
    PatientCase,
    Sex,
    Task,
    check_splits,
    make_splits,
    require_each_once,
)
from ehr.metrics import auroc
from ehr.salience.in_process import ExpertSection, fit_opinions

ABOUT_THE_PATIENT = ["patient_id", "date", "age", "sex", "outcome"]


def write_made_up(path: Path) -> None:
    """120 patients; lactate and creatinine carry the outcome, everything else is noise."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        lactate, creatinine = rng.gamma(4, 0.5), rng.gamma(4, 25)
        person = {"patient_id": f"A{number:03d}", "age": rng.integers(30, 90)}
        person |= {"sex": "female" if number % 2 else "male"}
        person |= {"outcome": int(2 * lactate + creatinine / 25 + rng.normal(0, 0.5) > 8)}
        for day in range(1, rng.integers(2, 5)):
            visit = {"date": f"2024-03-{day:02d}", "Lactate": lactate, "Creatinine": creatinine}
            visit |= {"Sodium": rng.normal(140, 4), "Potassium": rng.normal(4.2, 0.4)}
            visit |= {"Heart Rate": rng.normal(85, 12), "Glucose": rng.normal(6, 1)}
            visit |= {"CRP": rng.gamma(2, 20) if day > 1 else None}  # not at the first visit
            rows.append(person | visit)
    pd.DataFrame(rows).to_csv(path, index=False)


def read_cohort(path: Path) -> Cohort:
    """The rows of the file as cases, with labels beside them and splits drawn and checked."""
    table = pd.read_csv(path, dtype={"patient_id": str}, parse_dates=["date"])
    if (table.groupby("patient_id")["outcome"].nunique(dropna=False) > 1).any():
        sys.exit(f"{path}: expected one outcome for all rows of a patient, found two")
    names = [column for column in table.columns if column not in ABOUT_THE_PATIENT]
    cases, labels = {}, {}
    for patient, visits in table.sort_values("date").groupby("patient_id"):
        first = visits.iloc[0]
        cases[patient] = PatientCase(
            patient_id=str(patient),
            sex=Sex.UNKNOWN if pd.isna(first["sex"]) else Sex(first["sex"]),
            age=None if pd.isna(first["age"]) else float(first["age"]),
            visit_labels=tuple(f"{date:%Y-%m-%d}" for date in visits["date"]),
            visit_days=tuple((visits["date"] - first["date"]) / pd.Timedelta(days=1)),
            values=visits[names].to_numpy(dtype=float),  # missing values stay NaN
        )
        labels[patient] = int(first["outcome"])
    splits = make_splits(
        labels, num_test=len(labels) // 4, validation_fraction=0.15, seed=0, stratified=True
    )
    cohort = Cohort(
        name=path.stem,
        task=Task.MORTALITY,
        horizon_days=30,
        features=tuple(Feature(name=name) for name in names),
        cases=cases,
        labels=labels,
        splits=splits,
        has_dates=True,
    )
    check_splits(cohort)  # both classes everywhere, nobody twice
    require_each_once(cohort)  # nor one record under two ids
    return cohort


def main() -> None:
    """Trains four half-sample members, and prints what they think of the test patients."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if sys.argv[1:] else Path(folder) / "made_up.csv"
        if not sys.argv[1:]:
            write_made_up(path)
        cohort = read_cohort(path)
    print({split: len(patients) for split, patients in cohort.splits.items()})
    opinions = fit_opinions(cohort, ExpertSection(members=4))
    test = cohort.splits["test"]
    table = pd.DataFrame({"patient": test, "outcome": [cohort.labels[each] for each in test]})
    table["risk"] = [opinions[each].risk for each in test]
    table["salient features, heaviest first"] = [", ".join(opinions[each].salient) for each in test]
    print(table.round(2).to_string(index=False))
    reached = auroc(table["outcome"].tolist(), table["risk"].tolist())
    print(f"AUROC of the expert on {len(test)} test patients: {reached:.3f}")


if __name__ == "__main__":
    main()
