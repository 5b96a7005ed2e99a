"""Generators that cost nothing: a script in the search's own process, an engine behind Serve.

Ray workers import them by name.
"""

import asyncio
import random

from benchmarks.characters import alike_next_tokens
from ehr.language.guided_format import USEFULNESS_REGEX, final_regex, step_regex
from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.types import BASE_POLICY, Completion, GenerateRequest, NextToken, Policy

_STEPS = {step_regex(depth): depth for depth in range(1, 65)}
_NAMES = ("Heart Rate", "Glucose", "pH", "Temperature", "Weight", "Oxygen saturation")
_QUESTION_TOKENS, _ANSWER_TOKENS, _FINAL_TOKENS = 22, 45, 70
"""Lengths of what a trained model writes."""
_ANSWER = (
    "The value rose over the first visits, stayed above its reference range for most of the stay, "
    "and came back towards the middle of it on the last day, which speaks for a recovery that is "
    "under way but not complete.\n"
)


class ScriptedModel:
    """Writes what the guided format asks for, of ordinary length, from the seed alone."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of a request, at once."""
        sampling = request.sampling
        await asyncio.sleep(0)
        return [
            _completion(request, *_written(sampling.regex or "", (sampling.seed or 0) + index))
            for index in range(sampling.n)
        ]


def make_scripted() -> ScriptedModel:
    """Builds the model, where an actor would build its client."""
    return ScriptedModel()


def _written(regex: str, seed: int) -> tuple[str, int]:
    """What is written, and how many tokens it counts for."""
    # Seeds of one prompt's samples follow each other; a generator of its own tells them apart.
    rng = random.Random(seed)
    if regex == USEFULNESS_REGEX:
        return str(rng.randrange(1, 101)), 2
    if regex in _STEPS:
        if rng.random() < 0.1:
            return "Final subquestion>", 4
        about = f"{rng.choice(_NAMES)} change between visits {rng.randrange(9)} and"
        question = f"How did {about} {rng.randrange(10, 99)}, and does that raise the risk?"
        return f"Subquestion {_STEPS[regex]}>\n{question}\n", _QUESTION_TOKENS
    if regex == final_regex():
        names = ", ".join(rng.sample(_NAMES, 5))
        probability = f"0.{rng.randrange(5, 96):02d}"
        text = f"{names}\n</Important Features>\n<Final answer>\n{probability}\n"
        return text, _FINAL_TOKENS
    return _ANSWER, _ANSWER_TOKENS


def _completion(request: GenerateRequest, text: str, num_tokens: int) -> Completion:
    return Completion(
        token_ids=tuple(range(1000, 1000 + num_tokens)),
        text=text,
        logprobs=tuple(-0.25 - 0.001 * number for number in range(num_tokens)),
        finish_reason="stop",
        policy_version=BASE_POLICY,
        policy_checksum="",
        num_prompt_tokens=len(request.prompt_token_ids),
        num_cached_tokens=max(0, len(request.prompt_token_ids) - 47),
    )


class InstantEngine:
    """An engine of a generator replica that answers at once."""

    def __init__(self) -> None:
        self.version = BASE_POLICY
        self.checksum = ""
        self.cache_tokens = 1 << 20

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Answers of 29 tokens, a search's mean."""
        return [_completion(request, _ANSWER, 29) for _ in range(request.sampling.n)]

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """A constant."""
        return (-1.0,) * len(response_token_ids)

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """Every character that a risk may go on with, all alike."""
        return alike_next_tokens(regex)

    async def load_policy(self, policy: Policy) -> None:
        """Serve another policy: only its name changes."""
        self.version, self.checksum = policy.version, policy.checksum

    async def check(self) -> None:
        """Nothing of it can fail."""

    def stop(self) -> None:
        """It has no processes."""


async def load_instant(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> InstantEngine:
    """Loads it where a replica would load vLLM."""
    return InstantEngine()
