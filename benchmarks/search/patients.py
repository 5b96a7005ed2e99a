"""Patients of the synthetic cohort as the search gets them, and their searches in one process."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from actors.cache_room import CacheRoom, tree_tokens
from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import RequestLog
from actors.search import PatientSearch
from actors.search_prompts import PatientPrompts, patient_prompts
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection, PromptSection, RewardSection
from ehr.language.chat import ChatFrame
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.rewards import RewardContext, Salience
from services.types import Generator, PolicyVersion

_LONGEST_CONTEXT = 8192
"""SmolLM2's."""
_STEP_TOKENS = 64
"""Room for a step's tags beside what the model may write."""
_MOST_VISITS = 14
_LEAST_PATIENTS = 100
"""A cohort's splits need both classes in each."""


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


@cache
def patients_of(num: int) -> Cohort:
    """The synthetic cohort with long stays."""
    return build_cohort(CohortSection(num_patients=num, num_visits=_MOST_VISITS))


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
        self._cohort = patients_of(max(_LEAST_PATIENTS, num))
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
        cache_tokens: int | None = None,
    ) -> None:
        """All searches, as many at a time as the sizes say and as fit into the engines' cache.

        Args:
            generator: what they ask.
            least: the policy that they ask.
            tree: held while a patient's tree grows.
            cache_tokens: of all engines; None = unknown, and no tree is held back.
        """
        limits = SearchLimits(
            section=self._section, max_model_len=self._sizes.max_model_len, least=least
        )
        in_flight = asyncio.Semaphore(self._sizes.trees_in_flight)
        room = CacheRoom(cache_tokens)

        async def one(patient_id: str) -> None:
            async with in_flight:
                prompts = self._prompts(patient_id)
                async with room.take(tree_tokens(prompts, self._layout, limits)):
                    with tree(patient_id):
                        await self._search(prompts, generator, limits)

        async with asyncio.TaskGroup() as group:
            for patient_id in self.patient_ids:
                group.create_task(one(patient_id))

    def _prompts(self, patient_id: str) -> PatientPrompts:
        prompt = case_prompt(
            self._cohort.cases[patient_id],
            "question_decomposition",
            self._context,
            self._tokenizer,
            self._frame,
        )
        return patient_prompts(prompt, self._context, self._tokenizer, self._frame)

    async def _search(
        self, prompts: PatientPrompts, generator: Generator, limits: SearchLimits
    ) -> None:
        patient_id = prompts.patient_id
        judge = RewardJudge(self._reward_context(patient_id), RewardSection(), self._matcher)
        path = self._folder / "requests" / f"{patient_id}.jsonl"
        with RequestLog(path, generator) as log:
            model = PromptedModel(prompts, self._layout, log, limits)
            result = await PatientSearch(prompts, model, judge, self._section).run()
        done = self.done
        done.patients += 1
        done.prompt_tokens += len(prompts.case)
        done.by_kind.update(log.counts.by_kind)
        done.counts.update(asdict(result.counts))

    def _reward_context(self, patient_id: str) -> RewardContext:
        """What is salient steers where a tree grows, not how fast: the first features will do."""
        return RewardContext(
            patient_id=patient_id,
            label=self._cohort.labels[patient_id],
            salient_features=frozenset(each.name for each in self._cohort.features[:5]),
        )


async def no_expert(case: PatientCase) -> Salience:
    """An expert that is asked for nothing."""
    return Salience(features=frozenset({"pH"}))


def make_no_expert() -> Callable[[PatientCase], Awaitable[Salience]]:
    """Builds it, where an actor would build its client."""
    return no_expert
