"""The Ray actor that searches patients, several at a time on one event loop."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import ray

from actors.cache_room import CacheRoom, tree_tokens
from actors.case_prompts import CasePrompt, case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import Judge, LabelFreeJudge, RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import RequestLog
from actors.sampled_answers import SampledAnswers, samples_tokens, sampling_plan
from actors.search import PatientSearch
from actors.search_folder import PatientSummary, SearchFolder
from actors.search_prompts import patient_prompts
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.config import PromptSection, RewardSection
from ehr.language.chat import ChatFrame
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.rewards import RewardContext, Salience
from services.types import Completion, GenerateRequest, Generator, PolicyVersion

AskSalience = Callable[[PatientCase], Awaitable[Salience]]
"""Asks for a patient's salient features, C_exp; `actors.salience.ServedSalience` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSetup:
    """What every search actor gets."""

    search: SearchSection
    prompt: PromptSection
    reward: RewardSection
    max_model_len: int
    frame: ChatFrame
    least: PolicyVersion
    """The policy that is searched with."""
    make_generator: Callable[[], Generator]
    """Builds the generator client inside the actor."""
    make_tokenizer: Callable[[], TextTokenizer]
    make_ask_salience: Callable[[], AskSalience]
    """Builds what asks the expert, inside the actor."""
    cache_tokens: int | None = None
    """KV cache of all generator replicas, in tokens; None = unknown, nothing is held back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorProgress:
    """What an actor is doing."""

    trees: tuple[PatientSummary, ...]
    """What the trees that grow now have come to."""
    num_held: int
    """Patients that wait for room in the engine's cache."""
    new_rollouts: int
    """Simulations since the actor started, without those that only replayed a log."""
    new_decode_tokens: int
    """Tokens that the engine wrote for this actor."""


class RequestGate:
    """Passes requests on until it is shut; requests under way then still get their answers.

    Args:
        generator: who answers.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._num_under_way = 0
        self._is_shut = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The completions of a request; none ever, once the gate is shut."""
        if self._is_shut:
            # An error would cancel the siblings that still wait for answers of theirs.
            await asyncio.Event().wait()
        self._num_under_way += 1
        self._idle.clear()
        try:
            return await self._generator.generate(request)
        finally:
            self._num_under_way -= 1
            if self._num_under_way == 0:
                self._idle.set()

    async def shut(self) -> None:
        """No more requests; returns when those under way have been answered and logged."""
        self._is_shut = True
        await self._idle.wait()


@dataclass(slots=True)
class _Tree:
    """A tree that grows."""

    search: PatientSearch | SampledAnswers
    log: RequestLog
    started_unix_s: float
    replayed_requests: int = 0
    replayed_rollouts: int = 0
    """Rollouts that were done when a request was last answered from the log."""

    def new_rollouts(self) -> int:
        replayed = self.log.counts.replayed_requests
        if replayed > self.replayed_requests:
            self.replayed_requests = replayed
            self.replayed_rollouts = self.search.root.visit_count
        return self.search.root.visit_count - self.replayed_rollouts

    def new_decode_tokens(self) -> int:
        counts = self.log.counts
        return counts.decode_tokens - counts.replayed_decode_tokens

    def summary(self, patient_id: str) -> PatientSummary:
        """What it has come to so far."""
        terminals = [
            node
            for node in self.search.root.subtree()
            if node.reward is not None and node.content.verdict is not None
        ]
        readable = [
            node.reward
            for node in terminals
            if node.reward is not None
            and node.content.verdict is not None
            and node.content.verdict.format_failure is None
        ]
        return PatientSummary(
            patient_id=patient_id,
            rollouts=self.search.root.visit_count,
            trajectories=len(terminals),
            kept=0,
            best_reward=max(readable, default=None),
            search=asdict(self.search.counts),
            calls=asdict(self.log.counts),
            started_unix_s=self.started_unix_s,
            finished_unix_s=time.time(),
        )


@ray.remote(max_restarts=0)  # the pool replaces a dead actor and deals its patients again
class SearchActor:
    """Searches patients, each as one call, and writes the finished ones.

    Args:
        cohort: cases and labels.
        setup: sections, model facts and how to reach the services.
        folder: the search's files.
        cache_tokens: this actor's share of the engines' cache; None = unknown.
    """

    def __init__(
        self, cohort: Cohort, setup: SearchSetup, folder: SearchFolder, cache_tokens: int | None
    ) -> None:
        self._cohort = cohort
        self._setup = setup
        self._folder = folder
        self._gate = RequestGate(setup.make_generator())
        self._room = CacheRoom(cache_tokens)
        self._tokenizer = setup.make_tokenizer()
        self._ask_salience = setup.make_ask_salience()
        self._context = PromptContext.of(cohort, setup.prompt)
        self._matcher = FeatureMatcher(cohort.features)
        self._layout = search_format(
            setup.prompt.format, self._tokenizer, setup.search, self._context.listed_names
        )
        self._limits = SearchLimits(
            section=setup.search, max_model_len=setup.max_model_len, least=setup.least
        )
        self._trees: dict[str, _Tree] = {}
        self._new_rollouts = 0
        self._new_decode_tokens = 0

    async def pid(self) -> int:
        """The actor's process id; answers once the actor is up."""
        return os.getpid()

    async def search(self, patient_id: str) -> PatientSummary:
        """Searches one patient, continuing from its log, and writes its files."""
        finished = self._folder.finished(patient_id)
        if finished is not None:  # by an actor that died before it could say so
            return finished
        case = self._cohort.cases[patient_id]
        prompt = case_prompt(
            case, self._setup.prompt.kind, self._context, self._tokenizer, self._setup.frame
        )
        needed, begin = self._method(prompt)
        async with self._room.take(needed):
            started = time.time()
            judge = await self._judge(case)
            with RequestLog(self._folder.requests(patient_id), self._gate) as log:
                search = begin(log, judge)
                tree = self._trees[patient_id] = _Tree(search, log, started)
                result = await search.run()
        self._count_new(self._trees.pop(patient_id))
        best = result.trajectories[0]
        summary = PatientSummary(
            patient_id=patient_id,
            rollouts=search.root.visit_count,
            trajectories=len(result.trajectories),
            kept=sum(row.kept for row in result.trajectories),
            best_reward=best.reward if best.readable else None,
            search=asdict(result.counts),
            calls=asdict(log.counts),
            started_unix_s=tree.started_unix_s,
            finished_unix_s=time.time(),
        )
        self._folder.write(result, summary)
        return summary

    async def progress(self) -> ActorProgress:
        """What the actor is doing now."""
        trees = list(self._trees.values())
        return ActorProgress(
            trees=tuple(tree.summary(patient) for patient, tree in self._trees.items()),
            num_held=self._room.num_waiting,
            new_rollouts=self._new_rollouts + sum(tree.new_rollouts() for tree in trees),
            new_decode_tokens=self._new_decode_tokens
            + sum(tree.new_decode_tokens() for tree in trees),
        )

    async def halt(self) -> Sequence[PatientSummary]:
        """Asks the engine nothing more; returns what every tree has logged by then."""
        await self._gate.shut()
        return [tree.summary(patient) for patient, tree in self._trees.items()]

    def _method(
        self, prompt: CasePrompt
    ) -> tuple[int, Callable[[RequestLog, Judge], PatientSearch | SampledAnswers]]:
        """Cache that a patient's search needs, in tokens, and what makes the search."""
        section, least = self._setup.search, self._setup.least
        if section.method == "samples":
            plan = sampling_plan(section, self._context)

            def sample(log: RequestLog, judge: Judge) -> SampledAnswers:
                return SampledAnswers(prompt, log, self._tokenizer, judge, section, plan, least)

            return samples_tokens(prompt, plan, section), sample
        prompts = patient_prompts(prompt, self._context, self._tokenizer, self._setup.frame)

        def grow(log: RequestLog, judge: Judge) -> PatientSearch:
            model = PromptedModel(prompts, self._layout, log, self._limits)
            return PatientSearch(prompts, model, judge, section)

        return tree_tokens(prompts, self._layout, self._limits), grow

    async def _judge(self, case: PatientCase) -> Judge:
        """Who values the patient's trajectories; a label-free search never looks up its label."""
        salience = await self._ask_salience(case)
        if self._setup.search.value == "label_free":
            return LabelFreeJudge(salience, self._setup.search.usefulness_weight, self._matcher)
        context = RewardContext(
            patient_id=case.patient_id,
            label=self._cohort.labels[case.patient_id],
            salient_features=salience.features,
            stability=salience.stability,
        )
        return RewardJudge(context, self._setup.reward, self._matcher)

    def _count_new(self, tree: _Tree) -> None:
        self._new_rollouts += tree.new_rollouts()
        self._new_decode_tokens += tree.new_decode_tokens()
