"""A stand-in for the vLLM engine with its call shape: deterministic, instant, scriptable.

Ray workers import it by name, so it lives in a package.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.characters import next_characters
from ehr.errors import ModelError
from ehr.language.chat import ChatFrame
from services.adapters import adapter_checksum
from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    NextToken,
    Policy,
    PolicyVersion,
)

REFUSED_ADAPTER = b"not an adapter"
"""Bytes that the fake engine refuses, as vLLM's refuses what is not LoRA."""
BREAKING_ADAPTER = b"breaks half way"
"""Bytes that break the fake engine while it loads them."""


def fake_model(folder: Path) -> LocalModel:
    """A model that no file stands behind."""
    return LocalModel(
        path=folder,
        name="fake",
        source="tests",
        sha256="0" * 64,
        description="a fake",
        chat=ChatFrame(prefix="<user>", suffix="<assistant>"),
    )


@dataclass
class FakeEngine:
    """Completions that follow from prompt, seed and policy; text by a script of patterns.

    Token ids are the text's characters. A request whose regex is in `script` gets the scripted
    text; any other gets digits made from a hash. The policy's scaling shifts log-probabilities,
    so that a sync is visible in them.
    """

    script: Mapping[str, str] = field(default_factory=dict)
    version: PolicyVersion = BASE_POLICY
    checksum: str = ""
    cache_tokens: int = 1 << 20
    scaling: float = 0.0
    prefixes: set[tuple[int, ...]] = field(default_factory=set)
    is_broken: bool = False
    num_next_tokens: int = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        sampling = request.sampling
        prompt = request.prompt_token_ids
        cached = len(prompt) if prompt in self.prefixes else 0
        self.prefixes.add(prompt)
        completions: list[Completion] = []
        for index in range(sampling.n):
            seed = f"{prompt}{sampling.seed}{index if sampling.temperature else 0}"
            token_ids, text = self._text(request, hashlib.sha256(seed.encode()).hexdigest())
            completions.append(
                Completion(
                    token_ids=token_ids,
                    text=text,
                    logprobs=tuple(-1.0 - self.scaling for _ in token_ids),
                    finish_reason="length" if len(token_ids) == sampling.max_tokens else "stop",
                    policy_version=self.version,
                    policy_checksum=self.checksum,
                    num_prompt_tokens=len(prompt),
                    num_cached_tokens=cached,
                )
            )
        return completions

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        return tuple(-1.0 - self.scaling for _ in response_token_ids)

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """A distribution over what a risk may go on with; it depends on prompt and policy."""
        allowed = next_characters(regex)
        self.num_next_tokens += 1
        digest = hashlib.sha256(f"{prompt_token_ids}{self.scaling}".encode()).digest()
        weights = [1 + digest[place] for place in range(len(allowed))]
        return tuple(
            NextToken(token_id=ord(text), text=text, logprob=math.log(weight / sum(weights)))
            for text, weight in zip(allowed, weights, strict=True)
        )

    async def load_policy(self, policy: Policy) -> None:
        if policy.adapter == REFUSED_ADAPTER:
            raise ModelError("expected a LoRA adapter, got bytes that are none")
        if policy.adapter == BREAKING_ADAPTER:
            self.is_broken = True
            raise RuntimeError("out of memory while loading")
        assert policy.adapter is None or adapter_checksum(policy.adapter) == policy.checksum
        self.version, self.checksum = policy.version, policy.checksum
        self.scaling = policy.scaling
        self.prefixes.clear()

    async def check(self) -> None:
        if self.is_broken or not math.isfinite(self.scaling):
            raise RuntimeError("the fake engine is broken")

    def stop(self) -> None:
        self.prefixes.clear()

    def _text(self, request: GenerateRequest, digest: str) -> tuple[tuple[int, ...], str]:
        sampling = request.sampling
        if sampling.allowed_token_ids is not None:
            token = sampling.allowed_token_ids[int(digest, 16) % len(sampling.allowed_token_ids)]
            return (token,), chr(token)
        text = self.script.get(sampling.regex or "", f"{int(digest[:8], 16)}\n")
        if sampling.regex is not None and not re.fullmatch(sampling.regex, text):
            text = "0.50"
        ids = tuple(ord(letter) for letter in text)[: sampling.max_tokens]
        return ids, text[: sampling.max_tokens]


async def load_fake(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> FakeEngine:
    """Loads a fake engine where a replica would load vLLM."""
    return FakeEngine()


async def load_never(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> FakeEngine:
    """Fails as an engine does that does not fit into memory."""
    raise ModelError(f"no memory for the engine in process {os.getpid() > 0}")
