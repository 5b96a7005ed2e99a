"""Rollouts: whole answers sampled from the policy, for GRPO and for evaluation.

Unlike the search, a rollout keeps every token exactly as it was sampled: ratios and losses are
about those tokens. In the guided format the caller writes the fixed text between model calls; in
the free format the whole answer is one call.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from actors.case_prompts import PromptKind
from actors.seeds import call_seed
from ehr.language.guided_format import GuidedFormat
from ehr.language.guided_writers import (
    THINK_JSON,
    THINK_TAGS,
    CallKind,
    DirectWriter,
    GuidedWriter,
    ShortAnswerWriter,
    Writer,
)
from ehr.language.pieces import TextTokenizer
from services.types import (
    Completion,
    GenerateRequest,
    Generator,
    PolicyVersion,
    RiskReading,
    RiskRequest,
    RiskTeller,
    Sampling,
)

_STOPS: dict[str, tuple[str, ...]] = {
    "question_decomposition": ("</Final answer>",),
    "short_answer": ("</Final answer>",),
    "vanilla": ("</Final answer>",),
    "think_then_answer": ("</answer>",),
    # A brace beside a line end or a fence closes the object; one inside its text seldom does.
    "think_then_answer_json": ("\n}", "}\n", "}`"),
}


Reading = Literal["sampled", "expected"]
"""The risk of an answer: `sampled` token by token, or the `expected` one, the mean over the hundred
numbers that the policy may write there."""


MAX_IN_FLIGHT = 256
"""Rollouts sampled at a time where the cache sets no lower limit: what a replica takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """What is sampled, and within which limits."""

    format: Literal["free", "guided"]
    kind: PromptKind
    max_depth: int
    """Step at which a guided final is forced; a free rollout ends itself."""
    max_new_tokens: int
    """Most model-written tokens."""
    temperature: float
    think_tokens: int = 128
    """Budget of a guided Think-then-Answer's reasoning, in either form."""
    feature_names: tuple[str, ...] = ()
    """Names that guided answers may use for features; none = any."""
    reading: Reading = "sampled"
    """How the risk of a guided answer comes about; rollouts that are trained are sampled whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPrompt:
    """A patient's prompt as it goes to rollout workers."""

    patient_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternSpan:
    """Tokens of a response that were sampled under a pattern."""

    start: int
    stop: int
    regex: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer, exactly as sampled."""

    patient_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The response, caller-written tokens included."""
    model_written: tuple[bool, ...]
    """Whether the model wrote each of `token_ids`; the rest is context."""
    generator_logprobs: tuple[float, ...]
    """The generator's log-probability of each token, 0.0 where the caller wrote it."""
    constrained: tuple[bool, ...]
    """Whether each token was sampled under a pattern or a list of allowed tokens: not from all
    tokens, and vLLM gives a pattern's log-probabilities renormalised."""
    patterns: tuple[PatternSpan, ...] = ()
    """Which of them were sampled under which pattern."""
    text: str
    truncated: bool
    """Whether the answer ended at a token limit: a format failure."""
    oldest_policy: PolicyVersion
    newest_policy: PolicyVersion
    """Differs from `oldest_policy` only if a sync fell into the rollout."""
    num_requests: int
    num_cut_lines: int
    """Guided lines that the caller closed at their token limit."""
    risk: RiskReading | None = None
    """The distribution that the risk was read from; the text then has its mean, written by the
    caller. None = the risk was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Which rollouts to sample."""

    prompts: tuple[RolloutPrompt, ...]
    group_size: int
    """G: rollouts per prompt."""
    least: PolicyVersion
    """The oldest policy that may answer."""
    seed: int
    """Together with patient and index it decides every sampling seed."""
    max_in_flight: int = MAX_IN_FLIGHT
    """Rollouts that the sampler samples at a time, those of its other batches included; see
    `rollouts_in_flight`."""


def rollouts_in_flight(
    prompts: Sequence[RolloutPrompt], group_size: int, max_new_tokens: int, cache_tokens: int
) -> int:
    """Rollouts that may be sampled at a time before one's prompt pushes out another's.

    A rollout comes back to the engine for every piece it writes. With more of them than the cache
    holds, each finds its prompt gone and has it computed again.

    Args:
        prompts: of the batch; the longest counts.
        group_size: rollouts that share a prompt.
        max_new_tokens: of a rollout.
        cache_tokens: KV cache of all replicas, in tokens.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    groups = max(1, cache_tokens // (longest + group_size * max_new_tokens))
    return min(MAX_IN_FLIGHT, groups * group_size)


class RolloutSampler:
    """Samples rollouts of one plan; asyncio only.

    Args:
        generator: the served policy.
        tokenizer: its tokenizer.
        plan: format, kind and limits.
        risks: the same policy's risks, which a plan with `reading: expected` asks for.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: TextTokenizer,
        plan: RolloutPlan,
        risks: RiskTeller | None = None,
    ) -> None:
        if plan.reading == "expected" and (risks is None or plan.format == "free"):
            raise ValueError("expected risks need a guided format and somebody who tells them")
        self._generator = generator
        self._risks = risks
        self._tokenizer = tokenizer
        self._plan = plan
        is_guided = plan.format == "guided"
        self._layout = GuidedFormat(tokenizer, plan.feature_names) if is_guided else None
        self._slots = _Slots()

    async def sample_rollout(
        self, prompt: RolloutPrompt, *, least: PolicyVersion, seed: int, index: int = 0
    ) -> Rollout:
        """One rollout.

        Args:
            prompt: the patient's prompt.
            least: the oldest policy that may answer.
            seed: seed of the batch.
            index: place in the group; each has seeds of its own.
        """
        calls = _Calls(self._generator, prompt, least, seed, index)
        if self._layout is None:
            return calls.rollout(await self._free(calls))
        return calls.rollout(await self._guided(calls, self._writer(self._layout)))

    async def sample_groups(
        self, batch: RolloutBatch, on_rollout: Callable[[], None] = lambda: None
    ) -> list[list[Rollout]]:
        """A group of rollouts for every prompt, in the order of the prompts.

        Args:
            batch: what to sample.
            on_rollout: called whenever one is finished.
        """

        async def sample(prompt: RolloutPrompt, index: int) -> Rollout:
            async with self._slots.take(batch.max_in_flight):
                rollout = await self.sample_rollout(
                    prompt, least=batch.least, seed=batch.seed, index=index
                )
            on_rollout()
            return rollout

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    [group.create_task(sample(prompt, index)) for index in range(batch.group_size)]
                    for prompt in batch.prompts
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [[task.result() for task in tasks_of_prompt] for tasks_of_prompt in tasks]

    def _writer(self, layout: GuidedFormat) -> Writer:
        plan = self._plan
        match plan.kind:
            case "question_decomposition":
                return GuidedWriter(plan.max_depth, layout, plan.max_new_tokens)
            case "short_answer":
                return ShortAnswerWriter(layout, plan.max_new_tokens)
            case "vanilla":
                return DirectWriter(layout)
            case "think_then_answer":
                return DirectWriter(layout, THINK_TAGS, plan.think_tokens)
            case "think_then_answer_json":
                return DirectWriter(layout, THINK_JSON, plan.think_tokens)

    async def _guided(self, calls: "_Calls", writer: Writer) -> "_Response":
        logprobs: list[float] = []
        constrained: list[bool] = []
        patterns: list[PatternSpan] = []
        truncated = False
        risk: RiskReading | None = None
        while (call := writer.next_request()) is not None:
            if call.kind is CallKind.PROBABILITY and self._plan.reading == "expected":
                assert self._risks is not None, "looked at in the beginning"
                risk = await calls.read_risk(self._risks, writer.token_ids)
                text = f"{risk.mean:.2f}\n"
                writer.write(text, self._tokenizer.encode(text))
                continue
            sampling = Sampling(
                max_tokens=call.max_tokens,
                temperature=self._plan.temperature,
                stop=call.stop,
                include_stop=True,
                regex=call.regex,
                allowed_token_ids=call.allowed_token_ids,
            )
            completion = await calls.ask(call.kind, writer.token_ids, sampling)
            # A cut line is closed by the caller; half a probability cannot be.
            truncated |= (
                call.kind is CallKind.PROBABILITY and completion.finish_reason == "length"
            ) and not completion.text.endswith("\n")
            num_callers = len(writer.token_ids) - len(logprobs)
            is_constrained = call.regex is not None or call.allowed_token_ids is not None
            logprobs += [*[0.0] * num_callers, *completion.logprobs]
            constrained += [False] * num_callers + [is_constrained] * len(completion.logprobs)
            if call.regex is not None:
                start = len(writer.token_ids)
                stop = start + len(completion.token_ids)
                patterns.append(PatternSpan(start=start, stop=stop, regex=call.regex))
            writer.accept(completion.token_ids, completion.text)
        num_callers = len(writer.token_ids) - len(logprobs)
        logprobs += [0.0] * num_callers
        constrained += [False] * num_callers
        return _Response(
            token_ids=writer.token_ids,
            model_written=writer.model_mask,
            logprobs=logprobs,
            constrained=constrained,
            patterns=tuple(patterns),
            text=writer.text,
            truncated=truncated,
            num_cut_lines=writer.num_cut_lines,
            risk=risk,
        )

    async def _free(self, calls: "_Calls") -> "_Response":
        sampling = Sampling(
            max_tokens=self._plan.max_new_tokens,
            temperature=self._plan.temperature,
            stop=_STOPS[self._plan.kind],
            include_stop=True,
        )
        completion = await calls.ask("free", (), sampling)
        return _Response(
            token_ids=completion.token_ids,
            model_written=(True,) * len(completion.token_ids),
            logprobs=completion.logprobs,
            constrained=(False,) * len(completion.token_ids),
            text=completion.text,
            truncated=completion.finish_reason == "length",
        )


class _Slots:
    """Rollouts that run at a time, whichever batches they belong to."""

    def __init__(self) -> None:
        self._num_taken = 0
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, limit: int) -> AsyncIterator[None]:
        """Held while a rollout runs; waits while `limit` of them do."""
        while self._num_taken >= limit:
            await self._freed.wait()
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()


class _Calls:
    """The model calls of one rollout, and what they say about the policy."""

    def __init__(
        self,
        generator: Generator,
        prompt: RolloutPrompt,
        least: PolicyVersion,
        seed: int,
        index: int,
    ) -> None:
        self._generator = generator
        self._prompt = prompt
        self._least = least
        self._seed = seed
        self._index = index
        self._versions: list[PolicyVersion] = []

    async def ask(self, kind: str, written: tuple[int, ...], sampling: Sampling) -> Completion:
        """The reply after the prompt and everything written so far."""
        patient_id = self._prompt.patient_id
        place = f"rollout {self._index}"
        seed = call_seed(self._seed, patient_id, place, kind, len(self._versions))
        request = GenerateRequest(
            prompt_token_ids=(*self._prompt.token_ids, *written),
            sampling=replace(sampling, seed=seed),
            least=self._least,
            session=patient_id,
        )
        completion = (await self._generator.generate(request))[0]
        self._versions.append(completion.policy_version)
        return completion

    async def read_risk(self, risks: RiskTeller, written: tuple[int, ...]) -> RiskReading:
        """The distribution of the risk after the prompt and everything written so far."""
        request = RiskRequest(
            prompt_token_ids=(*self._prompt.token_ids, *written),
            least=self._least,
            session=self._prompt.patient_id,
        )
        reading = await risks.read_risk(request)
        self._versions.append(reading.policy_version)
        return reading

    def rollout(self, response: "_Response") -> Rollout:
        """The finished rollout."""
        return Rollout(
            patient_id=self._prompt.patient_id,
            prompt_token_ids=self._prompt.token_ids,
            token_ids=response.token_ids,
            model_written=response.model_written,
            generator_logprobs=tuple(response.logprobs),
            constrained=tuple(response.constrained),
            patterns=response.patterns,
            text=response.text,
            truncated=response.truncated,
            oldest_policy=min(self._versions),
            newest_policy=max(self._versions),
            num_requests=len(self._versions),
            num_cut_lines=response.num_cut_lines,
            risk=response.risk,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    token_ids: tuple[int, ...]
    model_written: tuple[bool, ...]
    logprobs: Sequence[float]
    constrained: Sequence[bool]
    text: str
    truncated: bool
    patterns: tuple[PatternSpan, ...] = ()
    num_cut_lines: int = 0
    risk: RiskReading | None = None
