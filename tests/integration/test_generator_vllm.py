"""The real engine: one vLLM for the session, on the packaged model."""

import asyncio
import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from transformers import AutoTokenizer

from ehr.errors import ModelError, ServiceError
from ehr.language.chat import encode_chat
from ehr.language.guided_format import PROBABILITY_REGEX
from services.models import FastTokenizer, LocalModel, load_tokenizer
from services.risk_reading import NUMBERS, RiskReader
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    Policy,
    PolicyVersion,
    Sampling,
)
from tests.integration.conftest import EngineThread

BASE = Policy(version=BASE_POLICY, adapter=None, scaling=0.0, checksum="")
QUESTION = "Name three organs of the human body, and say in one sentence each what they do."


@pytest.fixture(scope="module")
def tokenizer(smollm2: LocalModel) -> FastTokenizer:
    return load_tokenizer(smollm2.path)


@pytest.fixture(scope="module")
def prompt(smollm2: LocalModel, tokenizer: FastTokenizer) -> tuple[int, ...]:
    return encode_chat(tokenizer, smollm2.chat, QUESTION)


@pytest.fixture
def engine(vllm_engine: EngineThread):
    """The session's engine, which each test leaves at the base policy."""
    yield vllm_engine
    if vllm_engine.engine.version != BASE_POLICY:
        vllm_engine.run(vllm_engine.engine.load_policy(BASE))


def ask(engine: EngineThread, prompt: tuple[int, ...], **sampling: object) -> list[Completion]:
    request = GenerateRequest(
        prompt_token_ids=prompt,
        sampling=Sampling(**{"max_tokens": 12, "temperature": 0.0, **sampling}),
        least=BASE_POLICY,
        session="p1",
    )
    return engine.run(engine.engine.generate(request))


def adapter_for(model: LocalModel, version: int, size: float = 0.02) -> Policy:
    """A random LoRA on every projection of the model."""
    generator = torch.Generator().manual_seed(version)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(model.path / "model.safetensors", framework="pt") as base:
        for name in [each for each in base.keys() if "_proj" in each]:  # noqa: SIM118
            outputs, inputs = base.get_slice(name).get_shape()
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.05 * torch.randn(4, inputs, generator=generator)
            tensors[f"{module}.lora_B.weight"] = size * torch.randn(outputs, 4, generator=generator)
    content = save(tensors)
    return Policy(
        version=PolicyVersion(lineage="grpo", version=version),
        adapter=content,
        scaling=0.5,
        checksum=hashlib.sha256(content).hexdigest(),
    )


def test_a_completion_is_the_models_own_tokens_and_text(
    engine: EngineThread, prompt: tuple[int, ...], tokenizer: FastTokenizer
) -> None:
    (completion,) = ask(engine, prompt)

    assert tokenizer.decode(completion.token_ids) == completion.text
    assert len(completion.logprobs) == len(completion.token_ids) == 12
    assert completion.finish_reason == "length"
    assert completion.num_prompt_tokens == len(prompt)
    assert (completion.policy_version, completion.policy_checksum) == (BASE_POLICY, "")


def test_samples_of_one_request_differ_and_repeat_with_the_seed(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    first = ask(engine, prompt, n=3, temperature=1.0, seed=5)
    again = ask(engine, prompt, n=3, temperature=1.0, seed=5)

    assert len({each.text for each in first}) == 3
    assert [each.token_ids[0] for each in first] == [each.token_ids[0] for each in again]


def test_seeded_prompts_that_together_exceed_a_batch_are_all_answered(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    # vLLM's CPU engine died of a seeded prompt that it prefilled in parts.
    requests = [
        GenerateRequest(
            prompt_token_ids=prompt + tuple(range(1000 + 1500 * i, 2500 + 1500 * i)),
            sampling=Sampling(max_tokens=4, temperature=1.0, seed=i),
            least=BASE_POLICY,
            session=f"p{i}",
        )
        for i in range(3)
    ]

    async def together() -> list[list[Completion]]:
        return await asyncio.gather(*map(engine.engine.generate, requests))

    assert [len(sample.token_ids) for (sample,) in engine.run(together())] == [4, 4, 4]


@pytest.mark.parametrize("pattern", [r"[^<\n]+\n", r"0\.[0-9]{2}", r"100|[1-9][0-9]?"])
def test_a_pattern_holds_for_tokens_and_text_without_an_end_token(
    engine: EngineThread, prompt: tuple[int, ...], tokenizer: FastTokenizer, pattern: str
) -> None:
    (completion,) = ask(engine, prompt, regex=pattern, max_tokens=96, temperature=0.7, seed=1)

    assert completion.finish_reason == "stop"
    assert re.fullmatch(pattern, completion.text)
    assert tokenizer.decode(completion.token_ids) == completion.text


def test_allowed_tokens_are_sampled_and_keep_their_unmasked_logprob(
    engine: EngineThread, prompt: tuple[int, ...], tokenizer: FastTokenizer
) -> None:
    unlikely = tuple(
        token for text in (" zebra", " gravel") for token in tokenizer.encode(text)[:1]
    )

    (completion,) = ask(engine, prompt, allowed_token_ids=unlikely, max_tokens=1)

    assert completion.token_ids[0] in unlikely
    assert completion.logprobs[0] < -3.0


def test_a_stop_string_ends_the_text_and_may_be_kept(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    (cut,) = ask(engine, prompt, stop=(" ",), max_tokens=30)
    (kept,) = ask(engine, prompt, stop=(" ",), include_stop=True, max_tokens=30)

    assert " " not in cut.text
    assert kept.text == cut.text + " "
    assert cut.finish_reason == kept.finish_reason == "stop"


def test_logprobs_do_not_depend_on_the_temperature(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    (greedy,) = ask(engine, prompt, max_tokens=1)
    (warm,) = ask(engine, prompt, max_tokens=1, temperature=2.0, allowed_token_ids=greedy.token_ids)

    # The second one reads most of the prompt from the cache: bfloat16 in another order.
    assert warm.logprobs[0] == pytest.approx(greedy.logprobs[0], abs=0.05)


def test_scoring_a_completion_gives_its_logprobs_again(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    (completion,) = ask(engine, prompt)

    scores = engine.run(engine.engine.score(prompt, completion.token_ids))

    difference = [abs(a - b) for a, b in zip(scores, completion.logprobs, strict=True)]
    # bfloat16: one prefill and twelve decoding steps add up in another order.
    assert sum(difference) / len(difference) < 0.06


def test_scores_are_those_of_the_model_in_torch(
    engine: EngineThread, prompt: tuple[int, ...], smollm2: LocalModel
) -> None:
    from transformers import AutoModelForCausalLM

    (completion,) = ask(engine, prompt)
    reference = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32)
    ids = torch.tensor([prompt + completion.token_ids])
    with torch.inference_mode():
        logits = reference(ids).logits[0, len(prompt) - 1 : -1].float()
    expected = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]

    scores = torch.tensor(engine.run(engine.engine.score(prompt, completion.token_ids)))

    assert (scores - expected).abs().mean() < 1e-5


def test_a_prompt_that_comes_again_is_read_from_the_prefix_cache(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    long = prompt * 4
    ask(engine, long, max_tokens=1)

    (again,) = ask(engine, long, max_tokens=1)

    assert again.num_cached_tokens >= len(long) - 32


def test_a_prompt_beyond_the_context_is_refused_with_the_setting_to_change(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    with pytest.raises(ServiceError, match=r"model.max_model_len = 2048"):
        ask(engine, prompt * 80)


def test_the_engine_says_how_much_its_cache_holds(engine: EngineThread) -> None:
    # 1 GiB of 30 layers x 3 heads x 64 x (key and value) x 4 bytes, in whole blocks
    assert engine.engine.cache_tokens == pytest.approx(2**30 / (30 * 3 * 64 * 2 * 4), rel=0.01)


def test_a_sync_changes_the_model_and_empties_the_prefix_cache(
    engine: EngineThread, prompt: tuple[int, ...], smollm2: LocalModel
) -> None:
    policy = adapter_for(smollm2, 1)
    response = ask(engine, prompt)[0].token_ids
    before = engine.run(engine.engine.score(prompt, response))
    ask(engine, prompt * 2, max_tokens=1)

    engine.run(engine.engine.load_policy(policy))
    (after,) = ask(engine, prompt * 2, max_tokens=1)
    scores = engine.run(engine.engine.score(prompt, response))

    assert (after.policy_version, after.policy_checksum) == (policy.version, policy.checksum)
    assert after.num_cached_tokens == 0
    assert max(abs(a - b) for a, b in zip(before, scores, strict=True)) > 0.01


@pytest.mark.parametrize("size", [4e-4, 0.05], ids=["a few updates", "much"])
def test_a_merged_policy_is_the_base_plus_its_update(
    engine: EngineThread, prompt: tuple[int, ...], smollm2: LocalModel, size: float
) -> None:
    from transformers import AutoModelForCausalLM

    policy = adapter_for(smollm2, 2, size=size)
    response = ask(engine, prompt)[0].token_ids
    engine.run(engine.engine.load_policy(policy))
    scores = torch.tensor(engine.run(engine.engine.score(prompt, response)))

    # The file is bfloat16, which would round the small update away; the engine is float32.
    expected = merged_scores(
        AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32),
        policy,
        prompt,
        response,
    )
    assert (scores - expected).abs().mean() < 1e-5


def test_the_base_comes_back_exactly_after_any_number_of_syncs(
    engine: EngineThread, prompt: tuple[int, ...], smollm2: LocalModel
) -> None:
    response = ask(engine, prompt, max_tokens=24)[0].token_ids
    before = engine.run(engine.engine.score(prompt, response))
    for version in (3, 4):
        engine.run(engine.engine.load_policy(adapter_for(smollm2, version)))
    merged = engine.run(engine.engine.score(prompt, response))

    engine.run(engine.engine.load_policy(BASE))

    assert merged != before
    assert engine.run(engine.engine.score(prompt, response)) == before


def test_an_adapter_of_another_model_is_refused_and_the_old_policy_stays(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    layer = "base_model.model.encoder.layers.0.mlp"
    content = save(
        {
            f"{layer}.lora_A.weight": torch.ones(2, 4),
            f"{layer}.lora_B.weight": torch.ones(4, 2),
        }
    )
    stranger = Policy(
        version=PolicyVersion(lineage="grpo", version=9),
        adapter=content,
        scaling=1.0,
        checksum=hashlib.sha256(content).hexdigest(),
    )

    with pytest.raises(ModelError, match="trained on another model"):
        engine.run(engine.engine.load_policy(stranger))

    assert ask(engine, prompt, max_tokens=1)[0].policy_version == BASE_POLICY


def merged_scores(
    model: torch.nn.Module, policy: Policy, prompt: tuple[int, ...], response: tuple[int, ...]
) -> torch.Tensor:
    """Log-probabilities of a response by torch, with the adapter added to every layer."""
    from services.adapters import read_pairs

    parameters = dict(model.named_parameters())
    with torch.inference_mode():
        for name, pair in read_pairs(policy.adapter or b"").items():
            parameters[name].add_(policy.scaling * (pair.b @ pair.a))
        ids = torch.tensor([prompt + response])
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("\n\n12", ["\n\n", "1", "2"]),
        ("  7", ["  ", "7"]),
        ("a 2020", ["a", " ", "2", "0", "2", "0"]),
        ("<|im_start|>user\n\n\n3", ["<|im_start|>", "user", "\n\n\n", "3"]),
    ],
)
def test_the_packaged_model_reads_the_tokens_of_its_training(
    text: str, tokens: list[str], tokenizer: FastTokenizer
) -> None:
    """Its published tokenizer splits digits from each other, and then everything else."""
    assert [tokenizer.decode([token]) for token in tokenizer.encode(text)] == tokens


def test_transformers_reads_the_packaged_models_tokens_alike(
    smollm2: LocalModel, tokenizer: FastTokenizer
) -> None:
    text = "x\n\n12  7.4"

    assert AutoTokenizer.from_pretrained(smollm2.path).encode(text) == tokenizer.encode(text)


def test_the_packaged_model_is_complete(smollm2: LocalModel) -> None:
    tensors = load_file(smollm2.path / "model.safetensors")

    assert smollm2.sha256.startswith("b179c9523d0e")
    assert smollm2.chat.prefix.startswith("<|im_start|>system")
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    assert Path(smollm2.path / "tokenizer.json").is_file()


def test_a_risk_is_read_as_it_would_be_sampled(
    engine: EngineThread, prompt: tuple[int, ...]
) -> None:
    """The exact distribution against 2,000 samples of the same engine, under the same pattern."""
    reader = RiskReader(engine.engine.next_tokens)
    found = engine.run(reader.read(prompt))
    again = engine.run(reader.read(prompt))
    samples = ask(
        engine, prompt, regex=PROBABILITY_REGEX, max_tokens=5, temperature=1.0, n=2000, seed=3
    )

    exact = dict(zip(NUMBERS, found.probabilities, strict=True))
    assert sum(exact.values()) == pytest.approx(1, abs=1e-6)
    assert again.num_requests <= 11
    assert again.probabilities == pytest.approx(found.probabilities, abs=0.02)
    counts = Counter(sample.text for sample in samples)
    assert set(counts) <= set(exact)
    for tens in range(10):
        share = sum(exact[each] for each in NUMBERS if each[2] == str(tens))
        counted = sum(count for text, count in counts.items() if text[2] == str(tens)) / 2000
        # four standard errors, and what bfloat16 does to it in another batch
        assert counted == pytest.approx(share, abs=4 * math.sqrt(share / 2000) + 0.02)
    mean = sum(p * float(text) for text, p in exact.items())
    counted = sum(count * float(text) for text, count in counts.items()) / 2000
    assert counted == pytest.approx(mean, abs=0.03)
