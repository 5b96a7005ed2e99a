"""What crosses the boundary between a caller and a generator: frozen, picklable values."""

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PolicyVersion:
    """Which policy: a lineage ("base", "stage1", "grpo") and a version that grows inside it."""

    lineage: str
    version: int

    def satisfies(self, least: "PolicyVersion") -> bool:
        """Whether a policy of this version may answer a request that accepts `least` or newer."""
        return self.lineage == least.lineage and self.version >= least.version


BASE_POLICY = PolicyVersion(lineage="base", version=0)
"""The language model as it was loaded, without an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy by value: everything a replica needs to serve it."""

    version: PolicyVersion
    adapter: bytes | None
    """A peft LoRA adapter (`adapter_model.safetensors`); None is the base model."""
    scaling: float
    """lora_alpha / rank; 0.0 for the base model."""
    checksum: str
    """SHA-256 of `adapter`, "" for the base model."""
    number: int = 0
    """Publications of the run up to this one: a larger number is a later policy, whatever its
    lineage; 0 is the base model before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request is sampled; maps one to one to vLLM's SamplingParams."""

    max_tokens: int
    temperature: float
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the stop string in the text and in the token ids."""
    regex: str | None = None
    """Constrains the whole completion (structured output). The end token that closes a finished
    pattern is left out of the completion."""
    allowed_token_ids: tuple[int, ...] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt as token ids, sampled `sampling.n` times."""

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    least: PolicyVersion
    """The oldest policy that may answer."""
    session: str
    """Routing hint, the same for all requests of a patient: a warm prefix cache, nothing else.
    The caller gives the patient's id; the Serve client replaces it by a keyed hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample, exactly as the engine produced it."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    """Log-probability of each token at temperature 1, before any filter; with a `regex`, among the
    tokens that the pattern allowed there."""
    finish_reason: str
    """"stop" or "length"."""
    policy_version: PolicyVersion
    policy_checksum: str
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache: the request's figure, repeated on its n samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """A token that a pattern allows next, and how likely it is there."""

    token_id: int
    text: str
    logprob: float
    """Among the tokens that the pattern allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskRequest:
    """Asks for the distribution of the risk that a model would write next."""

    prompt_token_ids: tuple[int, ...]
    """Everything before the number's first character."""
    least: PolicyVersion
    """The oldest policy that may answer."""
    session: str
    """Routing hint, as in `GenerateRequest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskReading:
    """How likely a policy is to write each of the risks 0.00, 0.01, ..., 0.99."""

    probabilities: tuple[float, ...]
    """Of the hundred numbers in order; they sum to 1."""
    policy_version: PolicyVersion
    num_requests: int
    """Requests to the engine, one decoded token each."""

    @property
    def mean(self) -> float:
        """The expected risk."""
        return math.fsum(p * n for n, p in enumerate(self.probabilities)) / 100

    @property
    def spread(self) -> float:
        """Standard deviation of the written risk around its mean."""
        mean = self.mean
        square = math.fsum(p * (n / 100 - mean) ** 2 for n, p in enumerate(self.probabilities))
        return math.sqrt(square)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What a replica serves after a sync."""

    replica: str
    version: PolicyVersion
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Log-probabilities of a given response, as one replica sees them."""

    replica: str
    version: PolicyVersion
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorStats:
    """What a replica has done since it started."""

    replica: str
    requests: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts, counted once a request."""
    cached_tokens: int = 0
    """Of these, tokens that the prefix cache had."""
    decode_tokens: int = 0
    syncs: int = 0
    sync_s: float = 0.0
    cache_tokens: int = 0
    """Size of its KV cache, in tokens."""


class Generator(Protocol):
    """Anything that answers generation requests: the Serve client, a log replay, a script."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The `sampling.n` completions of a request, in sample order."""
        ...


class RiskTeller(Protocol):
    """Anything that tells the distribution of the risk that a model would write next."""

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        """How likely each of the hundred risks is to be written next."""
        ...
