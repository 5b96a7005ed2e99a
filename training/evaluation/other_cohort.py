"""Another cohort's test patients: language models read its own schema, the others need a map.

A language model is shown names, values and visits as the other cohort has them. A model of the
record takes numbers at fixed places: it gets the other cohort's values through
`ehr.cohorts.schema_map`.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd

from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import choose_patients, cohort_hash
from ehr.cohorts.same_patients import same_patients
from ehr.whole_files import write_json
from training.evaluation.answers import AnswerParser
from training.evaluation.asking import Asker, kept_or_made
from training.evaluation.other_patients import read_other_cohort, require_another_cohort
from training.evaluation.predictions import OTHER_COHORT_FILE, concatenate, record_rows
from training.evaluation.results import difference_rows, result_rows
from training.run.session import Session


class OtherCohort:
    """What the evaluate stage asks and writes about `evaluate.other_cohort`.

    Chooses its test patients by the same settings as the run's own. R_att is null: there is no
    expert of that cohort whose features could be compared.

    Args:
        session: the run; its expert must be trained.

    Raises:
        DataError: if the cohort cannot be read, shares no feature with the run's, or has test
            patients that the run's models learn from.
    """

    def __init__(self, session: Session) -> None:
        section = session.config.evaluate
        other = read_other_cohort(session.config)
        assert other is not None, "there is another cohort to ask about"
        self.cohort = other
        self.patients = choose_patients(
            self.cohort, "test", section.num_patients, section.balance, section.seed
        )
        self._session = session
        self._folder = session.path("evaluate")
        self._tables: list[pd.DataFrame] = []
        self._reader = AnswerParser(
            cohort=self.cohort,
            matcher=FeatureMatcher(self.cohort.features),
            salient=None,
            trained_on=session.cohort,
        )
        self._schema = require_another_cohort(session.cohort, self.cohort)

    def ask(self, name: str, asker: Asker, tell: Callable[[int], None]) -> None:
        """Asks one language model row; answers of an interrupted evaluation are kept.

        Args:
            name: of the row in the result table.
            asker: of its policy.
            tell: hears how many patients are answered.
        """

        def answered() -> pd.DataFrame:
            answers = asker.patients_of(self.cohort, self.patients, tell)
            return self._reader.rows(name, answers)

        part = self._folder / "parts" / f"{name}.other_cohort.parquet"
        self._tables.append(kept_or_made(part, answered))

    def write(self) -> None:
        """Adds the models of the record and writes predictions and results."""
        # torch and scikit-learn, which language models' rows do without
        from ehr.expert.ensemble import ExpertEnsemble
        from ehr.expert.transfer import transferred_risks

        session, section = self._session, self._session.config.evaluate
        test = self.cohort.splits["test"]
        labels = [self.cohort.labels[patient] for patient in test]
        ensemble = ExpertEnsemble.load(session.path("expert") / "checkpoint")
        risks = transferred_risks(ensemble, session.cohort, self.cohort, test, self._schema)
        records = [record_rows(name, test, labels, each.tolist()) for name, each in risks.items()]
        predictions = concatenate([*self._tables, *records])
        predictions.to_parquet(self._folder / "other_cohort_predictions.parquet")
        size, resamples, seed = (
            session.config.expert.num_salient_features,
            section.num_resamples,
            section.seed,
        )
        write_json(
            self._folder / OTHER_COHORT_FILE,
            {
                "cohort": self._described(),
                "trained_on": session.cohort.name,
                "map": self._map(),
                "rows": result_rows(predictions, size, resamples, seed),
                "differences": [
                    row
                    for table in self._tables
                    for row in difference_rows(
                        predictions, str(table["method"].iloc[0]), resamples, seed
                    )
                ],
            },
        )

    def _described(self) -> dict[str, Any]:
        own, test = self._session.cohort, self.cohort.splits["test"]
        return {
            "name": self.cohort.name,
            "sha256": cohort_hash(self.cohort),
            "features": len(self.cohort.features),
            "test_patients": len(test),
            "test_positives": sum(self.cohort.labels[patient] for patient in test),
            "asked_patients": len(self.patients),
            # nobody learnt from them, but they are no other hospital's
            "own_test_patients": len(same_patients(own, own.splits["test"], self.cohort, test)),
        }

    def _map(self) -> dict[str, Any]:
        return {
            "pairs": [asdict(pair) | {"rule": pair.rule} for pair in self._schema.pairs],
            "refused": list(self._schema.refused),
            "missing": list(self._schema.missing),
            "unused": list(self._schema.unused),
        }
