"""`sync: adapter`: vLLM's own LoRA on the adapter that a learner committed."""

import pytest
import torch

from services.adapters import adapter_checksum
from services.config import GeneratorSection
from services.models import LocalModel
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    Policy,
    PolicyVersion,
    Sampling,
)
from tests.integration.conftest import EngineThread
from training.config.learner import LearnerSection
from training.learner.checkpoints import PolicyFolder, VersionRecord
from training.learner.packing import TokenGroup, pack
from training.learner.policy_model import (
    PolicyModel,
    adapter_bytes,
    adapter_config_text,
    load_policy_model,
)

pytestmark = pytest.mark.slow

BASE = Policy(version=BASE_POLICY, adapter=None, scaling=0.0, checksum="")
RANK = 8
PROMPT = tuple(range(1000, 1080))
RESPONSE = tuple(range(2000, 2012))


@pytest.fixture(scope="module")
def learner(smollm2: LocalModel) -> PolicyModel:
    """The learner's model with an adapter that changes its answers."""
    section = LearnerSection(lora_rank=RANK, lora_alpha=RANK)
    model = load_policy_model(smollm2.path, section, dtype="bfloat16", seed=0, served_merged=False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.peft_model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def committed(learner: PolicyModel, tmp_path_factory: pytest.TempPathFactory) -> PolicyFolder:
    """That adapter as version 0 of a run."""
    folder = PolicyFolder(tmp_path_factory.mktemp("policies"))
    record = VersionRecord(
        run_id="r", version=0, step=0, attempt=1, sha256="", scaling=learner.scaling, metrics={}
    )
    folder.commit(record, adapter_bytes(learner), adapter_config_text(learner))
    return folder


@pytest.fixture(scope="module")
def engine(smollm2: LocalModel):
    """A real engine with vLLM's LoRA."""
    section = GeneratorSection(
        sync="adapter", cache_gib=0.5, max_num_seqs=4, max_lora_rank=RANK, threads=2
    )
    thread = EngineThread(smollm2, section)
    yield thread
    thread.stop()


def policy(learner: PolicyModel, version: int) -> Policy:
    content = adapter_bytes(learner)
    return Policy(
        version=PolicyVersion(lineage="grpo", version=version),
        adapter=content,
        scaling=learner.scaling,
        checksum=adapter_checksum(content),
    )


def ask(engine: EngineThread) -> Completion:
    request = GenerateRequest(
        prompt_token_ids=PROMPT,
        sampling=Sampling(max_tokens=8, temperature=0.0),
        least=BASE_POLICY,
        session="p1",
    )
    return engine.run(engine.engine.generate(request))[0]


def score(engine: EngineThread) -> torch.Tensor:
    return torch.tensor(engine.run(engine.engine.score(PROMPT, RESPONSE)))


def learner_scores(model: PolicyModel) -> torch.Tensor:
    group = TokenGroup(
        patient_id="p1",
        prompt=PROMPT,
        responses=(RESPONSE,),
        trained=((True,) * len(RESPONSE),),
    )
    (row,) = pack([group], len(PROMPT) + len(RESPONSE))
    with torch.inference_mode():
        return model(row)[0]


def differ(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean |difference| of log-probabilities, in nats."""
    return (ours - theirs).abs().mean().item()


def test_the_served_adapter_scores_as_the_learner_does(
    engine: EngineThread, learner: PolicyModel
) -> None:
    base = score(engine)

    engine.run(engine.engine.load_policy(policy(learner, 1)))
    served = score(engine)

    # Two bf16 forward passes of the same weights differ by their rounding, here by .07 nats where
    # the adapter moves .34; half of its scaling would be missing with about half of that.
    ours = learner_scores(learner)
    assert differ(served, ours) < differ(base, ours) / 3
    assert ask(engine).policy_version == PolicyVersion(lineage="grpo", version=1)


def test_a_new_version_of_a_policy_finds_nothing_of_the_old_one_in_the_prefix_cache(
    engine: EngineThread, learner: PolicyModel
) -> None:
    engine.run(engine.engine.load_policy(policy(learner, 2)))
    first, second = ask(engine), ask(engine)
    engine.run(engine.engine.load_policy(policy(learner, 3)))

    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens > 0
    assert ask(engine).num_cached_tokens == 0


def test_the_base_model_comes_back_as_it_was(engine: EngineThread, learner: PolicyModel) -> None:
    engine.run(engine.engine.load_policy(BASE))
    before = score(engine)
    engine.run(engine.engine.load_policy(policy(learner, 4)))
    changed = score(engine)
    engine.run(engine.engine.load_policy(BASE))

    assert torch.equal(score(engine), before)
    assert differ(changed, before) > 0.2


def test_a_committed_folder_is_an_adapter_for_vllm_as_it_lies_there(
    engine: EngineThread, learner: PolicyModel, committed: PolicyFolder
) -> None:
    from vllm.lora.request import LoRARequest

    engine.run(engine.engine.load_policy(policy(learner, 5)))
    served = score(engine)
    engine.run(engine.engine.load_policy(BASE))
    folder = LoRARequest("committed", 1000, str(committed.adapter_folder(0)))

    # What `vllm serve --lora-modules NAME=FOLDER` does.
    engine.run(engine.engine._running.add_lora(folder))
    engine.engine._lora = folder

    assert torch.equal(score(engine), served)
