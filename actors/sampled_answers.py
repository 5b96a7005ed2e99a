"""The teacher without a tree: plain answers of the untrained model, each valued like a terminal.

Best-of-n with the search's judge, pool, logs and tables. It is what the search must beat as a
teacher, and the only teacher for answers that have no steps to search over.
"""

import asyncio
from dataclasses import replace

from actors.case_prompts import CasePrompt
from actors.config import SearchSection
from actors.judge import Judge
from actors.request_log import RequestLog
from actors.rollouts import Rollout, RolloutPlan, RolloutPrompt, RolloutSampler
from actors.search_result import PatientResult, SearchCounts, node_records
from actors.steps import Step
from actors.trajectories import SearchedTrajectory, rank_trajectories
from actors.tree import Candidate, Node, backpropagate, expand
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.language.trajectory import FINAL_SENTENCE, parse_trajectory
from services.types import Completion, GenerateRequest, PolicyVersion

_ROOM_FOR_CHOICES = 8
"""Tokens beside those of the lines: choices, the probability."""


def sampling_plan(section: SearchSection, context: PromptContext) -> RolloutPlan:
    """How a patient's answers are sampled: within the limits of a search, at one temperature.

    Args:
        section: limits, depth, and `question_temperature`, at which all of an answer is sampled.
        context: of the prompts: which kind of answer, and its format.
    """
    prompt = context.section
    steps = 0 if prompt.kind == "short_answer" else section.max_depth - 1
    lines = steps * (section.question_tokens + section.answer_tokens)
    return RolloutPlan(
        format=prompt.format,
        kind=prompt.kind,
        max_depth=section.max_depth,
        max_new_tokens=lines + section.final_tokens + _ROOM_FOR_CHOICES + section.max_depth,
        temperature=section.question_temperature,
        feature_names=context.listed_names,
    )


def samples_tokens(prompt: CasePrompt, plan: RolloutPlan, section: SearchSection) -> int:
    """Cache that a patient's answers need, in tokens: one prompt, and all answers at a time."""
    return len(prompt.token_ids) + section.num_rollouts * plan.max_new_tokens


class SampledAnswers:
    """`search.num_rollouts` plain answers about one patient; `run` once.

    Their record is a tree of one level: every answer is a terminal below the root.

    Args:
        prompt: the patient's prompt.
        log: every completion is in it before it is used.
        tokenizer: the model's.
        judge: values answers; nothing of it reaches the model.
        section: how many, and which are kept.
        plan: of `sampling_plan`.
        least: the oldest policy that may answer.
    """

    def __init__(
        self,
        prompt: CasePrompt,
        log: RequestLog,
        tokenizer: TextTokenizer,
        judge: Judge,
        section: SearchSection,
        plan: RolloutPlan,
        least: PolicyVersion,
    ) -> None:
        self._prompt = RolloutPrompt(patient_id=prompt.case.patient_id, token_ids=prompt.token_ids)
        self._log = log
        self._tokenizer = tokenizer
        self._judge = judge
        self._section = section
        self._plan = plan
        self._least = least
        self.counts = SearchCounts()
        self.root = Node(content=Step())
        expand(
            self.root,
            [
                Candidate(
                    content=Step(question=FINAL_SENTENCE, final=True),
                    usefulness=0.0,
                    terminal=True,
                )
                for _ in range(section.num_rollouts)
            ],
        )

    async def run(self) -> PatientResult:
        """All answers, ranked, with the best marked."""
        nodes = self.root.children or []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample(node)) for node in nodes]
                # In their order, whichever comes first: a mean's last bits depend on it.
                answers = [
                    self._valued(node, await task) for node, task in zip(nodes, tasks, strict=True)
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        ranked = rank_trajectories(answers, self._section)
        best = tuple(map(int, ranked[0].path.split("/")))
        return PatientResult(
            patient_id=self._prompt.patient_id,
            trajectories=ranked,
            nodes=node_records(self.root, best),
            counts=replace(self.counts),
            root_value=self.root.value,
        )

    async def _sample(self, node: Node[Step]) -> Rollout:
        (index,) = node.path
        sampler = RolloutSampler(_LoggedCalls(self._log, index), self._tokenizer, self._plan)
        return await sampler.sample_rollout(
            self._prompt, least=self._least, seed=self._section.seed, index=index
        )

    def _valued(self, node: Node[Step], rollout: Rollout) -> SearchedTrajectory:
        step = node.content
        step.answer, step.parsed = rollout.text, parse_trajectory(rollout.text)
        if rollout.truncated:
            step.parsed = replace(step.parsed, probability=None, failure="cut off")
        verdict = step.verdict = self._judge(step.parsed, ())
        self.counts.unreadable_finals += int(verdict.format_failure is not None)
        self.counts.cut_answers += rollout.num_cut_lines
        node.reward = verdict.value
        backpropagate(node)
        return SearchedTrajectory(
            patient_id=rollout.patient_id,
            text=rollout.text,
            token_ids=rollout.token_ids,
            prompt_token_ids=rollout.prompt_token_ids,
            model_written=rollout.model_written,
            value_kind=verdict.kind,
            reward=verdict.value,
            reward_cls=verdict.cls,
            reward_att=verdict.att,
            readable=verdict.format_failure is None,
            correct=verdict.correct,
            probability=step.parsed.probability,
            features=verdict.features,
            num_steps=len(step.parsed.steps) + 1,
            visit_count=node.visit_count,
            path=str(node.path[0]),
        )


class _LoggedCalls:
    """The calls of one answer, which come one after the other, by way of the patient's log."""

    def __init__(self, log: RequestLog, index: int) -> None:
        self._log = log
        self._index = index
        self._num_calls = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The logged completions, or new ones."""
        key = f"{self._index}:sample:{self._num_calls}"
        self._num_calls += 1
        return await self._log.generate(key, "sample", request)
