"""Expert-guided tree search of one patient, Algorithm 1 with the readings of docs/paper_map.md.

Pure asyncio over a generator: no Ray, no engine. The tree grows one simulation at a time; only the
scores of siblings (and eager answers) are asked for together, and each call's seed and log key
come from where it stands in the tree, so neither latency nor the order of patients matters.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from actors.case_prompts import CasePrompt
from actors.config import SearchSection
from actors.formats import Ask, SearchFormat
from actors.reading import (
    NEUTRAL_SCORE,
    Opening,
    read_score,
    same_question_key,
    usefulness,
)
from actors.request_log import RequestLog
from actors.trajectories import SearchedTrajectory, rank_trajectories
from actors.tree import Candidate, Node, backpropagate, expand, most_useful, select_leaf
from ehr.chat import ChatFrame, encode_chat
from ehr.config import RewardSection
from ehr.errors import SearchError
from ehr.guided import USEFULNESS_REGEX
from ehr.names import FeatureMatcher
from ehr.pieces import Piece, TextTokenizer, join_text, join_token_ids, model_written
from ehr.prompts import USEFULNESS_OPENING, PromptContext, usefulness_prompt
from ehr.rewards import Reward, RewardContext, reward
from ehr.trajectory import FINAL_SENTENCE, ParsedTrajectory, parse_trajectory
from services.types import Completion, GenerateRequest, PolicyVersion, Sampling

ResultT = TypeVar("ResultT")

SCORE_TOKENS = 4
"""Room for "100" digit by digit and the end of sequence; with less, 100 would be read as 10."""

_MIN_FINAL_TOKENS = 8
"""A final with less room than this cannot hold a name and a probability: not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a finished trajectory is worth."""

    reward: Reward
    correct: bool
    """Whether the probability lies on the label's side of the decision threshold."""
    features: tuple[str, ...]
    """Canonical names of its important features."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Rewards one patient's trajectories; the only holder of the label and of C_exp."""

    context: RewardContext
    section: RewardSection
    matcher: FeatureMatcher

    def __call__(self, parsed: ParsedTrajectory) -> Verdict:
        """The verdict on a parsed trajectory."""
        predicted = (parsed.probability or 0.0) >= self.section.decision_threshold
        return Verdict(
            reward=reward(parsed, self.context, self.section, self.matcher),
            correct=parsed.probability is not None and predicted == bool(self.context.label),
            features=tuple(sorted(self.matcher.canonical_set(parsed.features))),
        )


@dataclass(slots=True, kw_only=True)
class SearchCounts:
    """What happened in a patient's search; nothing a model does wrong goes uncounted."""

    scores: int = 0
    invalid_scores: int = 0
    """Scores unreadable twice, replaced by the neutral one."""
    duplicate_questions: int = 0
    dropped_questions: int = 0
    """Candidates without a usable question."""
    cut_questions: int = 0
    cut_answers: int = 0
    empty_answers: int = 0
    untagged_openings: int = 0
    resamples: int = 0
    forced_finals: int = 0
    exhausted_expansions: int = 0
    """Finals forced because no new question came."""
    context_finals: int = 0
    """Finals forced because another step might not have fitted into the context."""
    final_retries: int = 0
    unreadable_finals: int = 0


@dataclass(slots=True)
class Step:
    """What a node says: a subquestion or the final, and what has been written of it so far."""

    question: str = ""
    final: bool = False
    forced: bool = False
    scored: bool = False
    score_is_neutral: bool = False
    """Whether the usefulness stands for a score that could not be read."""
    answer: str | None = None
    """None until the node is first visited."""
    pieces: tuple[Piece, ...] = ()
    """The whole step once it is answered."""
    verdict: Verdict | None = None
    parsed: ParsedTrajectory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as the report draws it."""

    id: int
    """Place in the record, parents first; the root is 0."""
    parent: int | None
    path: tuple[int, ...]
    """Child indices from the root."""
    question: str
    answer: str | None
    """None where the node was never visited."""
    visit_count: int
    q: float | None
    """Mean reward of the simulations through the node."""
    usefulness: float | None
    """None for the root, and for a forced final, which has no rivals and is not scored."""
    score_is_neutral: bool
    terminal: bool
    reward: float | None
    on_best_path: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientResult:
    """A finished search of one patient."""

    patient_id: str
    trajectories: tuple[SearchedTrajectory, ...]
    """All unique terminals, ranked; the SFT set is marked."""
    nodes: tuple[NodeRecord, ...]
    """The tree, parents first."""
    counts: SearchCounts
    root_value: float
    """Mean reward of the simulations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientPrompts:
    """The fixed token parts of a patient's prompts."""

    patient_id: str
    case: tuple[int, ...]
    """P_QD of the case, up to the assistant's turn."""
    usefulness_head: tuple[int, ...]
    usefulness_tail: tuple[int, ...]
    """What follows the steps in P_H, the words that open the assistant's turn included."""


def patient_prompts(
    prompt: CasePrompt, context: PromptContext, tokenizer: TextTokenizer, frame: ChatFrame
) -> PatientPrompts:
    """Tokenises what does not change during a patient's search, once."""
    useful = usefulness_prompt(prompt.case, context)
    return PatientPrompts(
        patient_id=prompt.case.patient_id,
        case=prompt.token_ids,
        usefulness_head=encode_chat(tokenizer, ChatFrame(frame.prefix, ""), useful.head),
        usefulness_tail=(
            *encode_chat(tokenizer, ChatFrame("", frame.suffix), useful.tail),
            *tokenizer.encode(USEFULNESS_OPENING),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What bounds and names a search beside its section."""

    section: SearchSection
    max_model_len: int
    """Longest prompt + answer that the engine takes."""
    least: PolicyVersion
    """The policy that is searched with."""


def call_seed(run_seed: int, patient_id: str, path: str, kind: str, index: int) -> int:
    """The sampling seed of a call: the same for the same place in the same run's trees."""
    name = f"{run_seed}|{patient_id}|{path}|{kind}|{index}"
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # some samplers want a non-negative int32


class PatientSearch:
    """The search of one patient; `run` once.

    Args:
        prompts: the patient's prompts.
        layout: the output format.
        judge: rewards finished trajectories; nothing of it reaches a prompt.
        log: answers requests, from the log first.
        limits: sizes of the search and of the context.
    """

    def __init__(
        self,
        prompts: PatientPrompts,
        layout: SearchFormat,
        judge: Callable[[ParsedTrajectory], Verdict],
        log: RequestLog,
        limits: SearchLimits,
    ) -> None:
        self._prompts = prompts
        self._layout = layout
        self._judge = judge
        self._log = log
        self._limits = limits
        self._section = limits.section
        self.counts = SearchCounts()
        self.root = Node(content=Step())

    async def run(self) -> PatientResult:
        """All simulations, then the ranked trajectories and the tree.

        Raises:
            SearchError: if the case prompt leaves no room for a trajectory.
        """
        self._check_room()
        for _ in range(self._section.num_rollouts):
            await self._simulate()
        return self._result()

    async def _simulate(self) -> None:
        node = select_leaf(self.root, self._section.exploration_weight)
        await self._visit(node)
        while not node.terminal:
            await self._expand(node)
            node = most_useful(node.children or [])
            await self._visit(node)
        backpropagate(node)

    async def _visit(self, node: Node[Step]) -> None:
        """Answer a node, or write a terminal and reward it, unless that is done."""
        if node.parent is None or node.content.answer is not None:
            return
        if node.terminal:
            await self._write_final(node)
        else:
            await self._answer(node)

    async def _expand(self, node: Node[Step]) -> None:
        openings = await self._openings(node)
        if openings:
            candidates = await _together(
                self._candidate(node, index, opening) for index, opening in enumerate(openings)
            )
        else:
            self.counts.forced_finals += 1
            step = Step(question=FINAL_SENTENCE, final=True, forced=True)
            candidates = [Candidate(content=step, usefulness=0.0, terminal=True)]
        expand(node, candidates)
        if self._section.answers == "eager":
            children = node.children or []
            await _together(self._answer(child) for child in children if not child.terminal)

    async def _openings(self, node: Node[Step]) -> list[Opening]:
        """New questions to ask after a node; none where the final is forced."""
        if node.depth + 1 >= self._section.max_depth:
            return []
        if not self._has_room(node):
            self.counts.context_finals += 1
            return []
        openings = await self._new_openings(node)
        if not openings:
            self.counts.exhausted_expansions += 1
        return openings

    async def _new_openings(self, node: Node[Step]) -> list[Opening]:
        """Up to d questions that are neither repeated nor asked before on the path."""
        depth = node.depth + 1
        proposal = self._layout.proposal(depth)
        seen = {same_question_key(above.content.question) for above in node.lineage()[1:]}
        openings: list[Opening] = []
        for attempt in range(1 + self._section.max_resamples):
            missing = self._section.num_candidates - len(openings)
            if missing == 0:
                break
            self.counts.resamples += int(attempt > 0)
            completions = await self._ask(
                _Call(node, "question", attempt, self._section.question_temperature, missing),
                self._trajectory_prompt(node),
                proposal,
            )
            for completion in completions:
                opening = self._layout.read_proposal(completion, depth)
                if self._is_new(opening, seen):
                    openings.append(opening)
        return openings

    def _is_new(self, opening: Opening, seen: set[str]) -> bool:
        key = same_question_key(opening.question.text)
        self.counts.untagged_openings += int(not opening.tagged)
        if not key:
            self.counts.dropped_questions += 1
            return False
        self.counts.cut_questions += int(opening.question.cut)
        if key in seen:
            self.counts.duplicate_questions += 1
            return False
        seen.add(key)
        return True

    async def _candidate(self, node: Node[Step], index: int, opening: Opening) -> Candidate[Step]:
        score = await self._score(node, index, opening)
        step = Step(
            question=opening.question.text,
            final=opening.final,
            scored=True,
            score_is_neutral=score is None,
        )
        return Candidate(
            content=step,
            usefulness=usefulness(NEUTRAL_SCORE if score is None else score),
            terminal=opening.final,
        )

    async def _score(self, node: Node[Step], index: int, opening: Opening) -> int | None:
        """P_H's score of a candidate, Eq. 3; None if two attempts were unreadable."""
        question = self._layout.unanswered(
            node.depth + 1, opening.question.text, final=opening.final
        )
        prompt = (
            *self._prompts.usefulness_head,
            *self._steps_tokens(node),
            *join_token_ids(question),
            *self._prompts.usefulness_tail,
        )
        ask = Ask(max_tokens=SCORE_TOKENS, stop=("\n",), regex=USEFULNESS_REGEX)
        self.counts.scores += 1
        for attempt in range(2):
            call = _Call(node, "score", 2 * index + attempt, 0.0)
            completion = (await self._ask(call, prompt, ask))[0]
            score = read_score(completion.text, completion.finish_reason)
            if score is not None:
                return score
        self.counts.invalid_scores += 1
        return None

    async def _answer(self, node: Node[Step]) -> None:
        step, parent = node.content, _parent(node)
        question = self._layout.question(node.depth, step.question)
        completion = (
            await self._ask(
                _Call(node, "answer", 0, self._section.answer_temperature),
                (*self._trajectory_prompt(parent), *join_token_ids(question)),
                self._layout.answer(),
            )
        )[0]
        content = self._layout.read_answer(completion)
        self.counts.cut_answers += int(content.cut)
        self.counts.empty_answers += int(not content.text)
        step.answer = content.text
        step.pieces = (*question, *self._layout.close_answer(node.depth, content.text))

    async def _write_final(self, node: Node[Step]) -> None:
        """Write a terminal and reward it; unreadable twice, it gets the floor reward."""
        step = node.content
        await self._attempt_final(node, retry=False)
        if step.verdict is None or step.verdict.reward.format_failure is not None:
            self.counts.final_retries += 1
            await self._attempt_final(node, retry=True)
        verdict = step.verdict
        if verdict is None:  # neither attempt had room
            verdict = step.verdict = self._judge(parse_trajectory(""))
        self.counts.unreadable_finals += int(verdict.reward.format_failure is not None)
        node.reward = verdict.reward.total

    async def _attempt_final(self, node: Node[Step], *, retry: bool) -> None:
        step, parent = node.content, _parent(node)
        forced = step.forced or retry
        opening = self._layout.final_opening(step.question, forced=forced)
        prompt = (*self._trajectory_prompt(parent), *join_token_ids(opening))
        step.answer, step.pieces = "", opening
        if self._limits.max_model_len - len(prompt) < _MIN_FINAL_TOKENS:
            return
        temperature = 0.0 if forced else self._section.answer_temperature
        num_asked = 0
        written = prompt

        async def ask(request: Ask) -> Completion:
            nonlocal num_asked, written
            call = _Call(node, "final", 10 * int(retry) + num_asked, temperature)
            num_asked += 1
            completion = (await self._ask(call, written, request))[0]
            written = (*written, *join_token_ids(request.opening))
            return completion

        write = self._layout.retry_final if retry else self._layout.write_final
        body = await write(ask)
        text = join_text(body)
        step.answer, step.pieces = text, (*opening, *body)
        step.parsed = parse_trajectory(self._steps_text(parent) + join_text(opening) + text)
        step.verdict = self._judge(step.parsed)

    async def _ask(self, call: "_Call", prompt: tuple[int, ...], ask: Ask) -> list[Completion]:
        tokens = (*prompt, *join_token_ids(ask.opening))
        path = _name(call.node.path)
        request = GenerateRequest(
            prompt_token_ids=tokens,
            sampling=Sampling(
                # At least 1: a prompt that fills the context is the engine's to refuse.
                max_tokens=max(1, min(ask.max_tokens, self._limits.max_model_len - len(tokens))),
                temperature=call.temperature,
                n=call.num_samples,
                stop=ask.stop,
                regex=ask.regex,
                seed=call_seed(
                    self._section.seed, self._prompts.patient_id, path, call.kind, call.index
                ),
            ),
            least=self._limits.least,
            session=self._prompts.patient_id,
        )
        return await self._log.generate(f"{path}:{call.kind}:{call.index}", call.kind, request)

    def _trajectory_prompt(self, node: Node[Step]) -> tuple[int, ...]:
        return (*self._prompts.case, *self._steps_tokens(node))

    def _steps_tokens(self, node: Node[Step]) -> tuple[int, ...]:
        return tuple(t for n in node.lineage() for t in join_token_ids(n.content.pieces))

    def _steps_text(self, node: Node[Step]) -> str:
        return "".join(join_text(n.content.pieces) for n in node.lineage())

    def _has_room(self, node: Node[Step]) -> bool:
        """Whether one more step and the final surely fit after a node, and its scores too."""
        steps = len(self._steps_tokens(node))
        reserve = self._layout.reserve_tokens(node.depth + 1)
        prompts = self._prompts
        scoring = len(prompts.usefulness_head) + len(prompts.usefulness_tail) + SCORE_TOKENS
        return steps + reserve + max(len(prompts.case), scoring) <= self._limits.max_model_len

    def _check_room(self) -> None:
        if self._has_room(self.root):
            return
        reserve = self._layout.reserve_tokens(1)
        raise SearchError(
            f"expected room for one step and the final ({reserve} tokens) beside the prompt of "
            f"patient {self._prompts.patient_id!r} ({len(self._prompts.case)} tokens) within "
            f"model.max_model_len {self._limits.max_model_len}; lower prompt.max_prompt_tokens or "
            "raise model.max_model_len"
        )

    def _result(self) -> PatientResult:
        nodes = list(self.root.subtree())
        terminals = [self._trajectory(node) for node in nodes if node.reward is not None]
        ranked = rank_trajectories(terminals, self._section)
        best = tuple(map(int, ranked[0].path.split("/")))
        return PatientResult(
            patient_id=self._prompts.patient_id,
            trajectories=ranked,
            nodes=_records(nodes, best),
            counts=replace(self.counts),
            root_value=self.root.value,
        )

    def _trajectory(self, node: Node[Step]) -> SearchedTrajectory:
        pieces = [piece for above in node.lineage() for piece in above.content.pieces]
        step, verdict = node.content, node.content.verdict
        assert verdict is not None, "a rewarded terminal has a verdict"
        return SearchedTrajectory(
            patient_id=self._prompts.patient_id,
            text=join_text(pieces),
            token_ids=join_token_ids(pieces),
            prompt_token_ids=self._prompts.case,
            model_written=model_written(pieces),
            reward=verdict.reward.total,
            reward_cls=verdict.reward.cls,
            reward_att=verdict.reward.att,
            readable=verdict.reward.format_failure is None,
            correct=verdict.correct,
            probability=step.parsed.probability if step.parsed else None,
            features=verdict.features,
            num_steps=node.depth,
            visit_count=node.visit_count,
            path=_name(node.path),
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """Where a call stands in the tree and how it is sampled."""

    node: Node[Step]
    kind: str
    index: int
    temperature: float
    num_samples: int = 1


async def _together(calls: Iterable[Coroutine[None, None, ResultT]]) -> list[ResultT]:
    """All results in order; the first failure cancels the rest and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _parent(node: Node[Step]) -> Node[Step]:
    assert node.parent is not None, "the root is neither asked nor answered"
    return node.parent


def _name(path: tuple[int, ...]) -> str:
    return "/".join(map(str, path))


def _records(nodes: list[Node[Step]], best_path: tuple[int, ...]) -> tuple[NodeRecord, ...]:
    ids = {node.path: number for number, node in enumerate(nodes)}
    return tuple(
        NodeRecord(
            id=ids[node.path],
            parent=None if node.parent is None else ids[node.parent.path],
            path=node.path,
            question=node.content.question,
            answer=node.content.answer,
            visit_count=node.visit_count,
            q=node.value if node.visit_count else None,
            usefulness=node.usefulness if node.content.scored else None,
            score_is_neutral=node.content.score_is_neutral,
            terminal=node.terminal,
            reward=node.reward,
            on_best_path=best_path[: node.depth] == node.path,
        )
        for node in nodes
    )
