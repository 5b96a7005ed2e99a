"""The lightest engine whose log-probabilities are a model's own: a random model of two layers.

It merges an adapter as `services.merged_weights` does, from pristine weights. Ray workers import it
by name.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.characters import next_characters
from services.adapters import read_pairs, verify_policy
from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.types import BASE_POLICY, Completion, GenerateRequest, NextToken, Policy

VOCABULARY = 256
"""Tokens are characters."""


def write_tiny_model(folder: Path) -> Path:
    """Writes a random model of two layers."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


class TinyEngine:
    """An engine of a generator replica, and the learner's own view of the same policies."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.version = BASE_POLICY
        self.checksum = ""
        self.cache_tokens = 1 << 20
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._base = {name: value.clone() for name, value in self._model.state_dict().items()}

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Completions sampled from the loaded policy."""
        sampling = request.sampling
        generator = torch.Generator().manual_seed(sampling.seed or 0)
        return [self._sample(request, generator) for _ in range(sampling.n)]

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Log-probability of each response token."""
        ids = prompt_token_ids + response_token_ids
        rows = self._logprobs(ids)[len(prompt_token_ids) - 1 : -1]
        return tuple(row[token].item() for row, token in zip(rows, response_token_ids, strict=True))

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """Every character that a risk may go on with."""
        allowed = next_characters(regex)
        row = self._logprobs(prompt_token_ids)[-1][[ord(text) for text in allowed]].log_softmax(-1)
        return tuple(
            NextToken(token_id=ord(text), text=text, logprob=logprob)
            for text, logprob in zip(allowed, row.tolist(), strict=True)
        )

    async def load_policy(self, policy: Policy) -> None:
        """Serve another policy."""
        verify_policy(policy)
        weights = dict(self._base)
        for name, pair in read_pairs(policy.adapter).items() if policy.adapter else ():
            weights[name] = weights[name] + policy.scaling * (pair.b @ pair.a)
        self._model.load_state_dict(weights)
        self.version, self.checksum = policy.version, policy.checksum

    async def check(self) -> None:
        """Nothing of it can fail by itself."""

    def stop(self) -> None:
        """It has no processes."""

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[outputs, inputs] of every projection, by the name of its weight."""
        return {
            name: (weight.shape[0], weight.shape[1])
            for name, weight in self._base.items()
            if name.endswith("_proj.weight")
        }

    def _sample(self, request: GenerateRequest, generator: torch.Generator) -> Completion:
        prompt = request.prompt_token_ids
        tokens: list[int] = []
        logprobs: list[float] = []
        for _ in range(request.sampling.max_tokens):
            row = self._logprobs(prompt + tuple(tokens))[-1]
            tokens.append(int(torch.multinomial(row.exp(), 1, generator=generator)))
            logprobs.append(row[tokens[-1]].item())
        return Completion(
            token_ids=tuple(tokens),
            text="".join(map(chr, tokens)),
            logprobs=tuple(logprobs),
            finish_reason="length",
            policy_version=self.version,
            policy_checksum=self.checksum,
            num_prompt_tokens=len(prompt),
            num_cached_tokens=0,
        )

    def _logprobs(self, ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return self._model(torch.tensor([ids])).logits[0].log_softmax(-1)


async def load_tiny(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> TinyEngine:
    """Loads the tiny model where a replica would load vLLM."""
    return TinyEngine(model.path)
