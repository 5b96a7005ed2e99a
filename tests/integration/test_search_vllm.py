"""A search on the real engine: a log gives the same tree, the ledger has the engine's counts."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import CallCounts, RequestLog
from actors.search import PatientSearch
from actors.search_prompts import patient_prompts
from actors.search_result import PatientResult
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.rewards import RewardContext
from services.following import PolicyFollower
from services.models import FastTokenizer, LocalModel, load_tokenizer
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    Generator,
    Policy,
)
from tests.integration.conftest import EngineThread
from tests.scripted import CONTEXT, FEATURES, case_of

SECTION = SearchSection(
    num_rollouts=2,
    num_candidates=2,
    max_depth=2,
    question_tokens=12,
    answer_tokens=12,
    final_tokens=32,
)


@dataclass
class Refuses:
    """An engine that answers some requests, then none."""

    generator: Generator
    num_answered: int = 10**9
    requests: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if len(self.requests) >= self.num_answered:
            raise ConnectionError("no more answers")
        self.requests.append(request)
        return await self.generator.generate(request)


@pytest.fixture(scope="module")
def tokenizer(smollm2: LocalModel) -> FastTokenizer:
    return load_tokenizer(smollm2.path)


async def _never() -> Policy:
    raise AssertionError("the base policy is served")


async def _search(
    model: LocalModel, tokenizer: FastTokenizer, path: Path, generator: Generator
) -> tuple[PatientResult, CallCounts]:
    prompt = case_prompt(case_of(), "question_decomposition", CONTEXT, tokenizer, model.chat)
    judge = RewardJudge(
        RewardContext(patient_id="p1", label=1, salient_features=frozenset(FEATURES[:5])),
        RewardSection(),
        FeatureMatcher(CONTEXT.features),
    )
    prompts = patient_prompts(prompt, CONTEXT, tokenizer, model.chat)
    limits = SearchLimits(section=SECTION, max_model_len=2048, least=BASE_POLICY)
    with RequestLog(path, generator) as log:
        writer = PromptedModel(prompts, search_format("guided", tokenizer, SECTION), log, limits)
        search = PatientSearch(prompts, writer, judge, SECTION)
        return await search.run(), log.counts


@pytest.mark.slow
def test_a_patient_replayed_from_its_log_grows_the_same_tree(
    vllm_engine: EngineThread, smollm2: LocalModel, tokenizer: FastTokenizer, tmp_path: Path
) -> None:
    engine = PolicyFollower(vllm_engine.engine, _never, "replica")
    path = tmp_path / "p1.jsonl"
    nobody = Refuses(engine, num_answered=0)

    # Interrupted after six requests, continued, and then replayed without an engine.
    with pytest.raises(ConnectionError):
        vllm_engine.run(_search(smollm2, tokenizer, path, Refuses(engine, num_answered=6)))
    result, counts = vllm_engine.run(_search(smollm2, tokenizer, path, engine))
    again, replayed = vllm_engine.run(_search(smollm2, tokenizer, path, nobody))

    assert again == result
    assert nobody.requests == []
    assert 5 <= counts.replayed_requests <= 6  # a failure calls off the request beside it
    assert replayed.replayed_requests == replayed.requests == counts.requests
    # Both attempts together asked what the engine counted.
    stats = engine.stats()
    assert (stats.requests, stats.prompt_tokens, stats.decode_tokens) == (
        counts.requests,
        counts.prefill_tokens,
        counts.decode_tokens,
    )
    assert stats.cached_tokens == counts.prefill_tokens - counts.prefill_computed_tokens
    ignored = ("replayed_requests", "replayed_decode_tokens")
    same = {key: value for key, value in asdict(counts).items() if key not in ignored}
    assert {k: v for k, v in asdict(replayed).items() if k not in ignored} == same
