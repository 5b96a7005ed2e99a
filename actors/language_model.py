"""The language model as Algorithm 1 sees it, and the one that asks a served model with prompts.

Prompts are tokens of fixed pieces and of pieces written on the path. Each call's seed and log key
come from where it stands in the tree, so neither latency nor the order of patients matters.
"""

from dataclasses import dataclass
from typing import Protocol

from actors.config import SearchSection
from actors.formats import Ask, SearchFormat
from actors.reading import Opening, read_score
from actors.request_log import RequestLog
from actors.search_prompts import PatientPrompts
from actors.seeds import call_seed
from actors.steps import Step, parent_of, path_name, path_token_ids
from actors.tree import Node
from ehr.errors import SearchError
from ehr.language.guided_format import USEFULNESS_REGEX
from ehr.language.pieces import Piece, join_text, join_token_ids
from services.types import Completion, GenerateRequest, PolicyVersion, Sampling

SCORE_TOKENS = 4
"""Room for "100" digit by digit and the end of sequence; with less, 100 would be read as 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a node says once it is answered."""

    text: str
    """The answer, or the model's part of a final."""
    pieces: tuple[Piece, ...]
    """The whole step."""
    cut: bool = False
    """Whether the token limit came before the end, and something was cut off."""
    num_requests: int = 1


class LanguageModel(Protocol):
    """What Algorithm 1 asks of a language model about one patient, at the nodes of its tree."""

    def has_room(self, node: Node[Step]) -> bool:
        """Whether one more step and the final surely fit into the context after a node."""
        ...

    async def propose(self, node: Node[Step], num_samples: int, attempt: int) -> list[Opening]:
        """Candidate next steps after a node, Eq. 2; `attempt` counts resamples from 0."""
        ...

    async def score(
        self, node: Node[Step], index: int, opening: Opening, attempt: int
    ) -> int | None:
        """P_H's score from 1 to 100 of a node's candidate, Eq. 3; None if it is unreadable."""
        ...

    async def answer(self, node: Node[Step]) -> Written:
        """The answer to a node's subquestion."""
        ...

    async def write_final(self, node: Node[Step], *, retry: bool) -> Written:
        """Features and probability of a terminal; a retry is forced and greedy."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What bounds and names a search beside its section."""

    section: SearchSection
    max_model_len: int
    """Longest prompt + answer that the engine takes."""
    least: PolicyVersion
    """The policy that is searched with."""


class PromptedModel:
    """A served model asked about one patient, every completion logged before it is used.

    Args:
        prompts: the patient's prompts.
        layout: the output format.
        log: answers requests, from the log first.
        limits: sizes of the search and of the context.

    Raises:
        SearchError: if the case prompt leaves no room for a trajectory.
    """

    def __init__(
        self,
        prompts: PatientPrompts,
        layout: SearchFormat,
        log: RequestLog,
        limits: SearchLimits,
    ) -> None:
        self._prompts = prompts
        self._layout = layout
        self._log = log
        self._limits = limits
        self._section = limits.section
        if not self.has_room(Node(content=Step())):
            raise SearchError(
                "expected room for one step and the final "
                f"({layout.reserve_tokens(1)} tokens) beside the prompt of patient "
                f"{prompts.patient_id!r} ({len(prompts.case)} tokens) within model.max_model_len "
                f"{limits.max_model_len}; lower prompt.max_prompt_tokens or raise "
                "model.max_model_len"
            )

    def has_room(self, node: Node[Step]) -> bool:
        """Whether one more step, its scores and the final fit after a node at their longest."""
        prompts = self._prompts
        scoring = len(prompts.usefulness_head) + len(prompts.usefulness_tail) + SCORE_TOKENS
        reserve = self._layout.reserve_tokens(node.depth + 1)
        longest = len(path_token_ids(node)) + reserve + max(len(prompts.case), scoring)
        return longest <= self._limits.max_model_len

    async def propose(self, node: Node[Step], num_samples: int, attempt: int) -> list[Opening]:
        """Candidates of one request with `num_samples` samples."""
        depth = node.depth + 1
        call = _Call(node, "question", attempt, self._section.question_temperature, num_samples)
        completions = await self._ask(call, self._prompt(node), self._layout.proposal(depth))
        return [self._layout.read_proposal(completion, depth) for completion in completions]

    async def score(
        self, node: Node[Step], index: int, opening: Opening, attempt: int
    ) -> int | None:
        """A greedy score; the prompt ends behind the candidate's question."""
        question = self._layout.unanswered(
            node.depth + 1, opening.question.text, final=opening.final
        )
        prompt = (
            *self._prompts.usefulness_head,
            *path_token_ids(node),
            *join_token_ids(question),
            *self._prompts.usefulness_tail,
        )
        ask = Ask(max_tokens=SCORE_TOKENS, stop=("\n",), regex=USEFULNESS_REGEX)
        completions = await self._ask(_Call(node, "score", 2 * index + attempt, 0.0), prompt, ask)
        return read_score(completions[0].text, completions[0].finish_reason)

    async def answer(self, node: Node[Step]) -> Written:
        """An answer, cut at its limit."""
        question = self._layout.question(node.depth, node.content.question)
        prompt = (*self._prompt(parent_of(node)), *join_token_ids(question))
        call = _Call(node, "answer", 0, self._section.answer_temperature)
        completions = await self._ask(call, prompt, self._layout.answer())
        content = self._layout.read_answer(completions[0])
        return Written(
            text=content.text,
            pieces=(*question, *self._layout.close_answer(node.depth, content.text)),
            cut=content.cut,
        )

    async def write_final(self, node: Node[Step], *, retry: bool) -> Written:
        """A final in as many requests as the format takes."""
        step = node.content
        forced = step.forced or retry
        opening = self._layout.final_opening(step.question, forced=forced)
        prompt = (*self._prompt(parent_of(node)), *join_token_ids(opening))
        temperature = 0.0 if forced else self._section.answer_temperature
        num_requests = 0

        async def ask(request: Ask) -> Completion:
            nonlocal num_requests
            call = _Call(node, "final", 10 * int(retry) + num_requests, temperature)
            num_requests += 1
            return (await self._ask(call, prompt, request))[0]

        write = self._layout.retry_final if retry else self._layout.write_final
        body = await write(ask)
        return Written(text=join_text(body), pieces=(*opening, *body), num_requests=num_requests)

    async def _ask(self, call: "_Call", prompt: tuple[int, ...], ask: Ask) -> list[Completion]:
        tokens = (*prompt, *join_token_ids(ask.opening))
        # What `reserve_tokens` sets aside is enough for every call: nothing is ever truncated.
        assert len(tokens) + ask.max_tokens <= self._limits.max_model_len, "the context guard"
        path = path_name(call.node.path)
        patient_id = self._prompts.patient_id
        request = GenerateRequest(
            prompt_token_ids=tokens,
            sampling=Sampling(
                max_tokens=ask.max_tokens,
                temperature=call.temperature,
                n=call.num_samples,
                stop=ask.stop,
                regex=ask.regex,
                seed=call_seed(self._section.seed, patient_id, path, call.kind, call.index),
            ),
            least=self._limits.least,
            session=patient_id,
        )
        return await self._log.generate(f"{path}:{call.kind}:{call.index}", call.kind, request)

    def _prompt(self, node: Node[Step]) -> tuple[int, ...]:
        """P_QD of the case and everything written up to a node."""
        return (*self._prompts.case, *path_token_ids(node))


@dataclass(frozen=True, slots=True)
class _Call:
    """Where a call stands in the tree and how it is sampled."""

    node: Node[Step]
    kind: str
    index: int
    temperature: float
    num_samples: int = 1
