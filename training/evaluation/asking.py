"""Asking a run's language model about test patients, and keeping what it answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import ray

from actors.case_prompts import CasePrompt, PromptKind
from actors.rollouts import Reading, RolloutBatch, RolloutPlan, RolloutPrompt, rollouts_in_flight
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.language.feature_order import FeatureOrder
from ehr.language.prompts import PromptContext
from ehr.whole_files import whole_file
from services.types import PolicyVersion
from training.evaluation.answers import Answers
from training.evaluation.methods import prompt_kind, training_stage
from training.learner.trained_policy import TrainedPolicy, serve_trained
from training.run.session import Session

_WATCH_INTERVAL_S = 2.0
"""How often the driver looks at how far the answers are."""


def kept_or_made(part: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that an interrupted evaluation has kept, or a new one, which is kept."""
    if part.exists():
        return pd.read_parquet(part)
    table = make()
    with whole_file(part) as partial:
        table.to_parquet(partial)
    return table


class Asker:
    """Asks the policy of one language model row; it is served when the first question comes.

    Args:
        session: the run.
        method: as in `evaluate.methods`.
    """

    def __init__(self, session: Session, method: str) -> None:
        self._session = session
        self._method = method
        self.kind: PromptKind = prompt_kind(method, session.config.prompt.kind)

    def patients(self, patient_ids: list[str], tell: Callable[[int], None]) -> Answers:
        """Answers about patients of the cohort; `tell` hears how many there are."""
        return self._ask(
            self._session.case_prompts(patient_ids, self.kind), self._session.cohort, tell
        )

    def patients_of(
        self, cohort: Cohort, patient_ids: list[str], tell: Callable[[int], None]
    ) -> Answers:
        """Answers about patients of another cohort, shown in that cohort's own features."""
        cases = {patient: cohort.cases[patient] for patient in patient_ids}
        return self._ask(self._session.prompts_of(cases, self.kind, cohort), cohort, tell)

    def reordered(
        self, patient_ids: list[str], order: FeatureOrder, tell: Callable[[int], None]
    ) -> Answers:
        """Answers about patients of the cohort, whose features stand in another order."""
        session = self._session
        cases = {patient: session.cohort.cases[patient] for patient in patient_ids}
        prompts = session.prompts_of(cases, self.kind, order=order)
        return self._ask(prompts, session.cohort, tell)

    def cases(self, cases: Mapping[str, PatientCase]) -> Answers:
        """Answers to changed records, asked for as those about the patients they came from."""
        session = self._session
        return self._ask(session.prompts_of(cases, self.kind), session.cohort, lambda done: None)

    @cached_property
    def served_policy(self) -> PolicyVersion:
        """The policy of the row, published and compared with what was trained."""
        session, config = self._session, self._session.config
        trained_by = training_stage(self._method)
        if trained_by is None:
            return session.serve_base()
        version = PolicyVersion(
            lineage=session.lineage(f"evaluated {self._method}"),
            version=config.grpo.steps if self._method == "stage2" else 0,
        )
        stage = session.path(trained_by)
        policy = TrainedPolicy(version=version, adapter=stage / "adapter", stage=stage)
        return serve_trained(session, policy, self._method, session.path("evaluate"))

    def _ask(
        self, shown: Mapping[str, CasePrompt], cohort: Cohort, tell: Callable[[int], None]
    ) -> Answers:
        section = self._session.config.evaluate
        limits = AnswerLimits(
            num_samples=section.num_samples,
            max_depth=section.max_depth,
            max_new_tokens=section.max_new_tokens,
            seed=section.seed,
            reading=self._session.config.risk_reading,
        )
        question = Question(kind=self.kind, shown=shown, cohort=cohort, limits=limits)
        return ask_policy(self._session, self.served_policy, question, tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """How many answers, and how long they may be."""

    num_samples: int
    """Answers to each question: 1 = greedy, more = at temperature 1."""
    max_depth: int
    max_new_tokens: int
    seed: int
    reading: Reading = "sampled"
    """How their risks are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a policy is asked about some patients."""

    kind: PromptKind
    shown: Mapping[str, CasePrompt]
    """The prompt of each patient."""
    cohort: Cohort
    """Theirs."""
    limits: AnswerLimits


def ask_policy(
    session: Session, least: PolicyVersion, question: Question, tell: Callable[[int], None]
) -> Answers:
    """Answers of the policy that the generator serves.

    Args:
        session: the run.
        least: the oldest policy that may answer.
        question: what is asked.
        tell: hears how many questions are answered.
    """
    config, limits = session.config, question.limits
    plan = RolloutPlan(
        format=config.prompt.format,
        kind=question.kind,
        max_depth=limits.max_depth,
        max_new_tokens=limits.max_new_tokens,
        temperature=0.0 if limits.num_samples == 1 else 1.0,
        think_tokens=config.prompt.think_budget_tokens,
        feature_names=PromptContext.of(question.cohort, config.prompt).listed_names,
        reading=limits.reading,
    )
    prompts = tuple(
        RolloutPrompt(patient_id=patient, token_ids=prompt.token_ids)
        for patient, prompt in question.shown.items()
    )
    batch = RolloutBatch(
        prompts=prompts,
        group_size=limits.num_samples,
        least=least,
        seed=limits.seed,
        max_in_flight=rollouts_in_flight(
            prompts, limits.num_samples, limits.max_new_tokens, session.cache_tokens
        ),
    )
    actor: Any = session.rollout_actor
    sampling = actor.sample_groups.remote(plan, batch)
    while not ray.wait([sampling], timeout=_WATCH_INTERVAL_S)[0]:
        num_answers: Any = ray.get(actor.num_done.remote())
        tell(num_answers // limits.num_samples)
    groups = ray.get(sampling)
    return Answers(
        kind=question.kind,
        texts={group[0].patient_id: (group[0].text, group[0].truncated) for group in groups},
        more={
            group[0].patient_id: tuple((each.text, each.truncated) for each in group[1:])
            for group in groups
        },
        risks={group[0].patient_id: tuple(each.risk for each in group) for group in groups},
        shown={patient: prompt.case for patient, prompt in question.shown.items()},
    )
