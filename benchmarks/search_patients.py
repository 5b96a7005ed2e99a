"""Patients of the synthetic cohort as the search gets them, and their searches in one process."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import RequestLog
from actors.search import PatientSearch
from actors.search_prompts import patient_prompts
from ehr.catalogue import Feature
from ehr.chat import ChatFrame
from ehr.cohort import PatientCase
from ehr.config import CohortSection, PromptSection, RewardSection
from ehr.loaders import build_cohort
from ehr.names import FeatureMatcher
from ehr.pieces import TextTokenizer
from ehr.prompts import PromptContext
from ehr.rewards import RewardContext, Salience
from services.types import Generator, PolicyVersion

_LONGEST_CONTEXT = 8192
"""SmolLM2's."""
_STEP_TOKENS = 64
"""Room for a step's tags beside what the model may write."""
_MOST_VISITS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a search is."""

    patients: int
    prompt_tokens: int
    """The case prompts' limit: visits are left out until they fit."""
    num_rollouts: int
    num_candidates: int
    max_depth: int
    question_tokens: int = 64
    answer_tokens: int = 160
    final_tokens: int = 96
    trees_in_flight: int
    first_patient: int = 0
    """Which of the cohort's patients come: this one and those behind it."""

    @property
    def max_model_len(self) -> int:
        """Context that every trajectory fits into, as far as the model has it."""
        step = self.question_tokens + self.answer_tokens + _STEP_TOKENS
        needed = self.prompt_tokens + self.max_depth * step + 2 * self.final_tokens + 512
        return min(_LONGEST_CONTEXT, needed)

    def section(self, answers: Literal["lazy", "eager"] = "lazy") -> SearchSection:
        """The search's settings."""
        return SearchSection(
            num_rollouts=self.num_rollouts,
            num_candidates=self.num_candidates,
            max_depth=self.max_depth,
            question_tokens=self.question_tokens,
            answer_tokens=self.answer_tokens,
            final_tokens=self.final_tokens,
            answers=answers,
            trees_in_flight=self.trees_in_flight,
        )


@dataclass(slots=True)
class Searches:
    """What finished searches add up to."""

    patients: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """`SearchCounts` of all of them."""
    by_kind: Counter[str] = field(default_factory=Counter)
    """Requests of each kind, as the search counts them."""
    prompt_tokens: int = 0
    """Tokens of their case prompts."""


class PatientSearches:
    """Searches patients of the synthetic cohort, many at a time on one event loop."""

    def __init__(
        self,
        sizes: Sizes,
        tokenizer: TextTokenizer,
        frame: ChatFrame,
        folder: Path,
        answers: Literal["lazy", "eager"] = "lazy",
    ) -> None:
        """Prepares the cohort.

        Args:
            sizes: which patients, and how much is searched.
            tokenizer: the model's.
            frame: the model's chat template.
            folder: where the request logs go.
            answers: when children are answered.
        """
        num = sizes.first_patient + sizes.patients
        self._sizes = sizes
        self._tokenizer = tokenizer
        self._frame = frame
        self._folder = folder
        self._section = sizes.section(answers)
        self._layout = search_format("guided", tokenizer, self._section)
        self._cohort = build_cohort(
            CohortSection(num_patients=max(100, num), num_visits=_MOST_VISITS)
        )
        prompt = PromptSection(format="guided", max_prompt_tokens=sizes.prompt_tokens)
        self._context = PromptContext.of(self._cohort, prompt)
        self._matcher = FeatureMatcher(self._cohort.features)
        self.patient_ids = sorted(self._cohort.cases)[sizes.first_patient : num]
        self.done = Searches()

    async def run(
        self,
        generator: Generator,
        least: PolicyVersion,
        tree: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """All searches, as many at a time as the sizes say.

        Args:
            generator: what they ask.
            least: the policy that they ask.
            tree: held while a patient's tree grows.
        """
        room = asyncio.Semaphore(self._sizes.trees_in_flight)

        async def one(patient_id: str) -> None:
            async with room:
                with tree(patient_id):
                    await self._search(patient_id, generator, least)

        async with asyncio.TaskGroup() as group:
            for patient_id in self.patient_ids:
                group.create_task(one(patient_id))

    async def _search(self, patient_id: str, generator: Generator, least: PolicyVersion) -> None:
        case = self._cohort.cases[patient_id]
        prompt = case_prompt(
            case, "question_decomposition", self._context, self._tokenizer, self._frame
        )
        judge = RewardJudge(self._reward_context(case), RewardSection(), self._matcher)
        prompts = patient_prompts(prompt, self._context, self._tokenizer, self._frame)
        limits = SearchLimits(
            section=self._section, max_model_len=self._sizes.max_model_len, least=least
        )
        path = self._folder / "requests" / f"{patient_id}.jsonl"
        with RequestLog(path, generator) as log:
            model = PromptedModel(prompts, self._layout, log, limits)
            result = await PatientSearch(prompts, model, judge, self._section).run()
        done = self.done
        done.patients += 1
        done.prompt_tokens += len(prompt.token_ids)
        done.by_kind.update(log.counts.by_kind)
        done.counts.update(asdict(result.counts))

    def _reward_context(self, case: PatientCase) -> RewardContext:
        """What is salient steers where a tree grows, not how fast: the first features will do."""
        return RewardContext(
            patient_id=case.patient_id,
            label=self._cohort.labels[case.patient_id],
            salient_features=first_features(self._cohort.features),
        )


def first_features(features: Sequence[Feature]) -> frozenset[str]:
    """Five features, the same for everybody."""
    return frozenset(feature.name for feature in features[:5])


async def no_expert(case: PatientCase) -> Salience:
    """An expert that is asked for nothing."""
    return Salience(features=frozenset({"pH"}))


def make_no_expert() -> Callable[[PatientCase], Awaitable[Salience]]:
    """Builds it, where an actor would build its client."""
    return no_expert
