"""A language model's answers read: probability, names, claims."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import pandas as pd

from ehr.answers.grounding import GroundingChecker
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.language.json_answer import parse_think_json
from ehr.language.trajectory import (
    ParsedTrajectory,
    parse_think,
    parse_trajectory,
    parse_vanilla,
    reasoning_of,
)
from ehr.rewards import MAX_FEATURE_NAMES, attention_reward
from services.types import RiskReading
from training.evaluation.predictions import (
    PREDICTION_COLUMNS,
    SAMPLE_COLUMNS,
)
from training.evaluation.results import (
    _PROSE,
)

_PARSERS: dict[str, Callable[[str], ParsedTrajectory]] = {
    "vanilla": parse_vanilla,
    "think_then_answer": parse_think,
    "think_then_answer_json": parse_think_json,
    "question_decomposition": parse_trajectory,
    "short_answer": parse_trajectory,
}


NAMING_KINDS = ("question_decomposition", "short_answer")
"""Prompt kinds whose answers name important features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a language model answered about patients."""

    kind: str
    """Prompt kind that the answers reply to."""
    texts: Mapping[str, tuple[str, bool]]
    """Text of each patient's (first) answer, and whether it was cut off."""
    more: Mapping[str, tuple[tuple[str, bool], ...]] = field(default_factory=dict)
    """The other samples of each patient, where `evaluate.num_samples` asks for some."""
    risks: Mapping[str, tuple[RiskReading | None, ...]] = field(default_factory=dict)
    """The risk of each answer of a patient, the first one's first, where it was read as a
    distribution; else the risk is what the text says."""
    shown: Mapping[str, PatientCase]
    """What each prompt showed of its patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerParser:
    """Reads language model answers of one cohort into prediction rows."""

    cohort: Cohort
    matcher: FeatureMatcher
    salient: Mapping[str, frozenset[str]] | None
    """C_exp of each test patient; None where no expert was trained on the cohort."""
    trained_on: Cohort | None = None
    """Whose training split gives the base rate; None = the cohort itself."""

    @property
    def base_rate(self) -> float:
        """Share of positives in the training split."""
        cohort = self.trained_on or self.cohort
        train = cohort.splits["train"]
        return sum(cohort.labels[patient] for patient in train) / len(train)

    def rows(self, method: str, answers: Answers) -> pd.DataFrame:
        """Prediction rows of one method; its probability is the mean over a patient's samples.

        An unreadable sample stands in that mean at the base rate. The patient counts as failed only
        if no sample could be read; how many could not is in `sample_failed`.

        Args:
            method: name of the row in the result table.
            answers: of the language model.
        """
        checker = GroundingChecker(self.cohort.features, self.matcher)
        rows = []
        for patient, (text, truncated) in answers.texts.items():
            samples = [
                _read(answers.kind, *sample)
                for sample in ((text, truncated), *answers.more.get(patient, ()))
            ]
            failed = [is_unreadable for _, is_unreadable in samples]
            risks = answers.risks.get(patient) or (None,) * len(samples)
            probabilities = [
                self._risk(each, is_unreadable, risk)
                for (each, is_unreadable), risk in zip(samples, risks, strict=True)
            ]
            names = [
                frozenset() if is_unreadable else self.matcher.canonical_set(each.features)
                for each, is_unreadable in samples
            ]
            salient = None if self.salient is None else self.salient[patient]
            rewarded = salient if answers.kind in NAMING_KINDS else None
            has_prose = answers.kind in _PROSE
            prose = _PROSE.get(answers.kind, reasoning_of)(text)
            grounding = checker.check(prose, answers.shown[patient])
            rows.append(
                {
                    "method": method,
                    "patient_id": patient,
                    "label": self.cohort.labels[patient],
                    "probability": fmean(probabilities),
                    "parse_failed": all(failed),
                    "text": text,
                    "features": sorted(names[0]),
                    "salient": None if salient is None else sorted(salient),
                    "reward_att": None
                    if rewarded is None
                    else attention_reward(names[0], rewarded),
                    "num_claims": len(grounding.claims) if has_prose else None,
                    "wrong_claims": [
                        f"{checked.claim.text}: {checked.problem}" for checked in grounding.wrong
                    ],
                    "unsupported_numbers": list(grounding.unsupported_numbers),
                    "sample_probabilities": probabilities,
                    "sample_failed": failed,
                    "sample_features": [sorted(each) for each in names],
                    "sample_spreads": None if None in risks else [r.spread for r in risks if r],
                }
            )
        return pd.DataFrame(rows, columns=[*PREDICTION_COLUMNS, *SAMPLE_COLUMNS])

    def _risk(
        self, answer: ParsedTrajectory, is_unreadable: bool, risk: RiskReading | None
    ) -> float:
        """An answer's risk: expected where it was read so, else as written, or the base rate."""
        if is_unreadable or answer.probability is None:
            return self.base_rate
        return answer.probability if risk is None else risk.mean


def _read(kind: str, text: str, truncated: bool) -> tuple[ParsedTrajectory, bool]:
    """An answer, and whether it counts as unreadable."""
    parsed = _PARSERS[kind](text)
    too_many = len(parsed.features) > MAX_FEATURE_NAMES
    return parsed, truncated or parsed.probability is None or too_many
