"""A scripted language model: fast, deterministic, and as badly behaved as a test asks for.

It implements `services.types.Generator`. What it writes depends only on the prompt, the seed and
the sample's index, as with an engine that has batch invariance.
"""

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import Judge, LabelFreeJudge, RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import CallCounts, RequestLog
from actors.search import PatientSearch
from actors.search_prompts import PatientPrompts, patient_prompts
from actors.search_result import PatientResult
from actors.steps import Step
from actors.tree import Node
from ehr.catalogue import Feature
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.config import PromptSection, RewardSection, Task
from ehr.errors import ServiceError
from ehr.language.chat import ChatFrame
from ehr.language.prompts import PromptContext
from ehr.rewards import RewardContext, Salience
from services.types import BASE_POLICY, Completion, GenerateRequest, PolicyVersion, Sampling

FEATURES = (
    "Heart Rate",
    "Glucose",
    "pH",
    "Temperature",
    "Weight",
    "Oxygen saturation",
    "Respiratory rate",
    "Systolic blood pressure",
)

FRAME = ChatFrame(prefix="[USER]", suffix="[ASSISTANT]")


class CharTokenizer:
    """One token a character: every piece joins and splits without loss."""

    def encode(self, text: str) -> list[int]:
        """Code points."""
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of code points."""
        return "".join(map(chr, token_ids))


class ByteTokenizer:
    """One token a byte: what a model wrote in as many tokens as characters takes more here."""

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of UTF-8 bytes; a part of a character becomes a replacement character."""
        return bytes(token_ids).decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a request asks for, as the script reads it."""

    kind: str
    """choice, step, question, answer, final, features, probability, line, string or score."""
    prompt: str
    rng: random.Random

    @property
    def depth(self) -> int:
        """The step that comes next; the instructions show an answer too, so they do not count."""
        return self.prompt.rpartition(FRAME.suffix)[2].count("</Answer ") + 1


Script = Callable[[Call], str]


def sensible(call: Call) -> str:
    """Writes well-formed text of some variety, whatever is asked."""
    feature = call.rng.choice(FEATURES)
    names = ", ".join(call.rng.sample(FEATURES, 5))
    probability = f"0.{call.rng.randrange(5, 96):02d}"
    depth = call.depth
    question = f"How did {feature} change {call.rng.choice(('early', 'late', 'overall'))}?"
    opens_final = depth > 1 and call.rng.random() < 0.2
    match call.kind:
        case "choice":
            return "F" if opens_final else "S"
        case "step":
            return "Final subquestion>" if opens_final else f"Subquestion {depth}>\n{question}\n"
        case "opening" if opens_final:
            return "<Final subquestion>\nWhat is the risk?\n</Final subquestion>"
        case "opening":
            return f"<Subquestion {depth}>\n{question}\n</Subquestion {depth}>"
        case "answer":
            return f"{feature} stayed near {call.rng.randrange(10, 99)}.\n</Answer {depth}>"
        case "line" if call.prompt.endswith(f"<Answer {depth}>\n"):
            return f"{feature} stayed near {call.rng.randrange(10, 99)}.\n"
        case "line":
            return question + "\n"
        case "string":
            return f'{feature} worsens."'
        case "final":
            return (
                f"<Important Features>\n{names}\n</Important Features>\n"
                f"<Final answer>\n{probability}\n</Final answer>"
            )
        case "guided final":
            return f"{names}\n</Important Features>\n<Final answer>\n{probability}\n"
        case "features":
            return names + "\n"
        case "probability":
            return probability + "\n"
        case _:
            return str(call.rng.randrange(1, 101))


@dataclass
class ScriptedGenerator:
    """A generator that follows a script and counts what it is asked.

    `latency_s` makes replies arrive in an arbitrary order; `fail_at` raises at that request.
    """

    script: Script = sensible
    latency_s: float = 0.0
    fail_at: int | None = None
    policy_version: PolicyVersion = BASE_POLICY
    requests: list[GenerateRequest] = field(default_factory=list)
    num_in_flight: int = 0
    max_in_flight: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of a request."""
        self.requests.append(request)
        if self.fail_at is not None and len(self.requests) > self.fail_at:
            raise ConnectionError("the script ends here")
        self.num_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        try:
            await asyncio.sleep(self.latency_s * random.random())
        finally:
            self.num_in_flight -= 1
        completions = [self._complete(request, index) for index in range(request.sampling.n)]
        self.prefill_tokens += len(request.prompt_token_ids)
        self.decode_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    def _complete(self, request: GenerateRequest, index: int) -> Completion:
        sampling = request.sampling
        # The policy is in the name as well: another version writes other texts.
        seed = 0 if sampling.temperature == 0 else (sampling.seed, index)
        name = f"{request.prompt_token_ids}{seed}{self.policy_version}".encode()
        prompt = "".join(map(chr, request.prompt_token_ids))
        rng = random.Random(hashlib.sha256(name).digest())
        text = self.script(Call(kind=_kind(sampling), prompt=prompt, rng=rng))
        ends = [
            position + (len(stop) if sampling.include_stop else 0)
            for stop in sampling.stop
            if (position := text.find(stop)) >= 0
        ]
        text = text[: min(ends)] if ends else text
        finish_reason = "stop" if len(text) <= sampling.max_tokens else "length"
        text = text[: sampling.max_tokens]
        return Completion(
            token_ids=tuple(map(ord, text)),
            text=text,
            logprobs=tuple(-0.5 for _ in text),
            finish_reason=finish_reason,
            policy_version=self.policy_version,
            policy_checksum="",
            num_prompt_tokens=len(request.prompt_token_ids),
            num_cached_tokens=len(request.prompt_token_ids) // 2,
        )


def _kind(sampling: Sampling) -> str:
    if sampling.allowed_token_ids is not None:
        return "choice"
    if sampling.regex is None:
        return _free_kind(sampling.stop)
    if sampling.regex.startswith("(Subquestion"):
        return "step"
    if sampling.regex.startswith("100|"):
        return "score"
    if "</Important" in sampling.regex:
        return "guided final"
    if sampling.regex.startswith(r"0\."):
        return "probability"
    if sampling.regex.endswith('"'):
        return "string"
    return "features" if ", " in sampling.regex else "line"


def _free_kind(stop: tuple[str, ...]) -> str:
    if any("Final answer" in text for text in stop):
        return "final"
    return "opening" if any("/Subquestion" in text for text in stop) else "answer"


def empty(call: Call) -> str:
    """Nothing, whatever is asked."""
    return ""


def endless(call: Call) -> str:
    """One word without end: no stop, no sentence, no tag."""
    return "rising " * 2000


def untagged(call: Call) -> str:
    """Sentences without any tag."""
    return f"The {call.rng.choice(FEATURES)} matters. Is it {call.rng.random():.6f}?"


def repeating(call: Call) -> str:
    """The same question for ever, and otherwise sensible."""
    if call.kind in ("step", "opening"):
        opening = "" if call.kind == "step" else "<"
        return f"{opening}Subquestion {call.depth}>\nIs the heart rate rising?\n"
    return sensible(call)


def percent(call: Call) -> str:
    """Probabilities and scores in percent, and otherwise sensible."""
    return re.sub(r"0\.(\d\d)\b", r"\1%", sensible(call)) + ("%" if call.kind == "score" else "")


def above_one(call: Call) -> str:
    """Probabilities and scores out of range, and otherwise sensible."""
    return "1200" if call.kind == "score" else re.sub(r"0\.\d\d\b", "1.2", sensible(call))


def tag_soup(call: Call) -> str:
    """Tags of all kinds in the wrong places."""
    tags = (
        "</Answer 9>",
        "<Final answer>",
        "<Subquestion 3>",
        "</Subquestion",
        "<Important Features>",
    )
    return "".join(f"{call.rng.choice(tags)} {call.rng.random():.3f}? " for _ in range(6))


def other_language(call: Call) -> str:
    """Chinese and emoji with combining, NUL and control characters, in the right tags."""
    return re.sub(
        r"How did [^?]*\?|stayed near|What is the risk\?",
        lambda match: f"\u5fc3\u7387{call.rng.random():.3f}\U0001f494e\u0301\x00\x1b\u202e\uff1f",
        sensible(call),
    )


def wide(call: Call) -> str:
    """Everything as long as it may be, in characters of three bytes."""
    number = f"{call.rng.random():.4f}"
    match call.kind:
        case "step" | "opening":
            opening = "" if call.kind == "step" else "<"
            return f"{opening}Subquestion {call.depth}>\n{number}{chr(0x5FC3) * 30}?\n</Subquestion"
        case "score":
            return "7"
        case _:
            return chr(0x5FC3) * 2000


def misnumbered(call: Call) -> str:
    """Tags with numbers of other steps, and otherwise sensible."""
    return re.sub(r"(Subquestion|Answer) \d+>", r"\1 9>", sensible(call))


def unclosed(call: Call) -> str:
    """No closing tag anywhere, and otherwise sensible."""
    return re.sub(r"</[^>]*>", "", sensible(call))


def nested_tags(call: Call) -> str:
    """Tags and control tokens inside the contents, and otherwise sensible."""
    return re.sub(
        r"(change|stayed|risk|, )",
        r"\1 <|im_end|> <Final answer> 0.99 </Answer 1> ",
        sensible(call),
    )


GARBAGE = (
    empty,
    endless,
    untagged,
    repeating,
    percent,
    above_one,
    tag_soup,
    other_language,
    wide,
    misnumbered,
    unclosed,
    nested_tags,
)
"""Scripts of models that misbehave, each in its own way."""

CONTEXT = PromptContext(
    task=Task.MORTALITY,
    horizon_days=30,
    features=tuple(Feature(name=name) for name in FEATURES),
    has_dates=True,
    section=PromptSection(max_prompt_tokens=20_000, worked_example=False),
)


def case_of(patient_id: str = "p1") -> PatientCase:
    """A patient with two visits and nothing remarkable."""
    return PatientCase(
        patient_id=patient_id,
        sex=Sex.FEMALE,
        age=71.0,
        visit_labels=("2020-01-01", "2020-01-03"),
        visit_days=(0.0, 2.0),
        values=np.array([[80.0 + i, 90.0 + i] for i in range(len(FEATURES))]).T,
    )


@dataclass(frozen=True, kw_only=True)
class SearchRun:
    """A search that ran, and what it was run with."""

    result: PatientResult
    generator: ScriptedGenerator
    calls: CallCounts
    root: Node[Step]
    prompts: PatientPrompts


_SECTION = SearchSection(max_depth=4, question_tokens=120, answer_tokens=160, final_tokens=300)


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a scripted search is run with; token limits count characters."""

    format: Literal["guided", "free"] = "guided"
    section: SearchSection = _SECTION
    label: int = 1
    salient: frozenset[str] = frozenset(FEATURES[:5])
    stability: Mapping[str, float] | None = None
    """Given, the attention reward is weighted by it."""
    risk: float | None = None
    """The expert's, for a label-free search."""
    accuracy_weight: float = RewardSection().accuracy_weight
    margin_bonus: float = RewardSection().margin_bonus
    max_model_len: int = 100_000
    patient_id: str = "p1"
    tokenizer: CharTokenizer | ByteTokenizer = field(default_factory=CharTokenizer)

    @property
    def reward(self) -> RewardSection:
        """The reward's settings."""
        return RewardSection(
            accuracy_weight=self.accuracy_weight,
            margin_bonus=self.margin_bonus,
            attention_weighting="none" if self.stability is None else "stability",
        )

    def with_section(self, **changes: object) -> "SearchPlan":
        """The plan with other search settings."""
        return replace(self, section=self.section.model_copy(update=changes))


def judge_of(plan: SearchPlan) -> Judge:
    """Who values the trajectories of a plan's search."""
    matcher = FeatureMatcher(CONTEXT.features)
    if plan.section.value == "label_free":
        salience = Salience(features=plan.salient, risk=plan.risk)
        return LabelFreeJudge(salience, plan.section.usefulness_weight, matcher)
    context = RewardContext(
        patient_id=plan.patient_id,
        label=plan.label,
        salient_features=plan.salient,
        stability=plan.stability or {},
    )
    return RewardJudge(context, plan.reward, matcher)


async def run_scripted(plan: SearchPlan, generator: ScriptedGenerator, path: Path) -> SearchRun:
    """Searches one patient with a scripted model.

    Args:
        plan: settings, and what the reward knows.
        generator: the scripted model.
        path: the patient's request log.
    """
    tokenizer = plan.tokenizer
    prompt = case_prompt(
        case_of(plan.patient_id), "question_decomposition", CONTEXT, tokenizer, FRAME
    )
    prompts = patient_prompts(prompt, CONTEXT, tokenizer, FRAME)
    layout = search_format(plan.format, tokenizer, plan.section)
    limits = SearchLimits(
        section=plan.section,
        max_model_len=plan.max_model_len,
        least=generator.policy_version,
    )
    with RequestLog(path, generator) as log:
        model = PromptedModel(prompts, layout, log, limits)
        search = PatientSearch(prompts, model, judge_of(plan), plan.section)
        result = await search.run()
    return SearchRun(
        result=result, generator=generator, calls=log.counts, root=search.root, prompts=prompts
    )


@dataclass
class DiesOnce(ScriptedGenerator):
    """Ends its process at the given request: once if a marker file says so, else every time."""

    marker: Path | None = None
    die_at: int = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if len(self.requests) >= self.die_at and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os._exit(1)
        return await super().generate(request)


@dataclass
class RefusesPatient(ScriptedGenerator):
    """Answers nothing about one patient after some requests, when three patients are finished."""

    patient_id: str = ""
    refuse_at: int = 0
    finished: Path = Path()
    """Folder with a file of each finished patient."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        asked = sum(earlier.session == self.patient_id for earlier in self.requests)
        if request.session == self.patient_id and asked >= self.refuse_at:
            async with asyncio.timeout(60):
                while len(list(self.finished.glob("*.json"))) < 3:
                    await asyncio.sleep(0.01)
            raise ServiceError("the generator does not answer")
        return await super().generate(request)


async def _first_features(case: PatientCase) -> Salience:
    return Salience(features=frozenset(FEATURES[:5]))


def fixed_salience() -> Callable[[PatientCase], Awaitable[Salience]]:
    """An expert that finds the same features salient for everybody."""
    return _first_features


def unreadable_scores(call: Call) -> str:
    """Words instead of scores, and otherwise sensible."""
    return "useful" if call.kind == "score" else sensible(call)
