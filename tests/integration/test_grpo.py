"""Stage 2 on real Ray Train, DeepSpeed and Serve; the language model is a script."""

import asyncio
import json
from functools import partial
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from actors.rollout_actor import RolloutActor
from actors.rollouts import RolloutBatch, RolloutPlan, RolloutPrompt
from ehr.errors import TrainingError
from services.clients import GeneratorClient
from services.config import GeneratorSection, ModelSection
from services.generator import deploy_generator, stop_generator, wait_for_generator
from services.policy_store import read_ledger
from services.types import BASE_POLICY, PolicyVersion
from tests.fakes import fake_model
from tests.learner_fakes import grpo_inputs, tiny_model
from tests.policy_engines import load_deaf, load_learner_killer, load_scripted
from tests.scripted import CharTokenizer, ScriptedGenerator
from tests.typed import known, untyped
from training.config.grpo import GrpoSection
from training.grpo.controller_actor import ActorSampler
from training.grpo.train import train_grpo

REPLICA = GeneratorSection(cpus_per_replica=0.1, startup_timeout_s=120, request_timeout_s=60)


UNSERVED: dict[str, Any] = {"canary_tolerance": 1.0, "served_share_tolerance": 10.0}
"""Scripted engines score alike whatever is trained."""


def section(steps, **changes):
    fields = {"steps": steps, "group_size": 4, "max_depth": 2, "max_new_tokens": 400}
    return GrpoSection(**{**fields, "learning_rate": 1e-2, **UNSERVED, **changes})


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


def start_generator(run_id, folder, load_engine):
    deploy_generator(run_id, folder, fake_model(folder), ModelSection(), REPLICA, load_engine)
    wait_for_generator(run_id, REPLICA)


@pytest.fixture
def serve(local_ray, tmp_path):
    """Starts a generator of this test's own, and names it; its run folder is the test's folder."""
    run_id = tmp_path.name

    def start(load_engine):
        start_generator(run_id, tmp_path, load_engine)
        return run_id

    yield start
    stop_generator(run_id)


@pytest.fixture(scope="module")
def undisturbed(local_ray, model_path, tmp_path_factory):
    """Folder of three steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start_generator(folder.name, folder, load_scripted)
    train_grpo(inputs(folder.name, folder, model_path, grpo=section(3)), lambda *_: None)
    stop_generator(folder.name)
    return folder


def inputs(run_id, folder, model_path, **changes):
    return grpo_inputs(
        folder,
        model_path,
        run_id=run_id,
        make_generator=partial(GeneratorClient, run_id, 60),
        **changes,
    )


class HangsOnPatient0(ScriptedGenerator):
    """Never answers about patient p0."""

    async def generate(self, request):
        if request.session == "p0":
            await asyncio.Event().wait()
        return await super().generate(request)


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / "grpo" / name).read_text().splitlines()]


def adapter(folder):
    return load_file(folder / "grpo" / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_steps_train_commit_publish_and_sample_from_what_was_published(undisturbed):
    written = lines(undisturbed)
    versions = [(line["policy_version"], line["policy_version_out"]) for line in written]
    assert versions == [(0, 1), (1, 2), (2, 3)]
    assert all(line["grad/norm"] > 0 for line in written)
    samples = lines(undisturbed, "rollouts.jsonl")
    assert {(s["step"], s["policy_version"]) for s in samples} == {(1, 0), (2, 1), (3, 2)}
    served = read_ledger(undisturbed / "policy.json").current
    assert served.version == PolicyVersion(lineage="grpo", version=3)
    final = adapter(undisturbed)
    committed = load_file(known(served.adapter_path))
    assert all(torch.equal(final[name], committed[name]) for name in final)
    assert any(weight.any() for name, weight in final.items() if "lora_B" in name)


@pytest.mark.slow
def test_a_stage_that_was_stopped_goes_on_at_the_next_step_to_the_same_policy(
    serve, undisturbed, model_path, tmp_path
):
    run_id = serve(load_scripted)
    train_grpo(inputs(run_id, tmp_path, model_path, grpo=section(2)), lambda *_: None)

    train_grpo(inputs(run_id, tmp_path, model_path, grpo=section(3)), lambda *_: None)

    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    for ours, theirs in zip(lines(tmp_path), lines(undisturbed), strict=True):
        assert ours["reward/mean"] == theirs["reward/mean"]
    for name, weight in adapter(undisturbed).items():
        assert torch.equal(weight, adapter(tmp_path)[name])


@pytest.mark.slow
def test_a_learner_that_is_killed_after_a_commit_takes_the_steps_of_one_that_was_not(
    serve, undisturbed, model_path, tmp_path
):
    run_id = serve(load_learner_killer)

    train_grpo(inputs(run_id, tmp_path, model_path, grpo=section(3)), lambda *_: None)

    assert (tmp_path / "ranks_killed").read_text() == "1"
    assert [(line["step"], line["attempt"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 2)]
    for ours, theirs in zip(lines(tmp_path), lines(undisturbed), strict=True):
        for name in ("reward/mean", "loss", "grad/norm", "entropy/salient_mean"):
            assert ours[name] == theirs[name]
    for name, weight in adapter(undisturbed).items():
        assert torch.equal(weight, adapter(tmp_path)[name])


@pytest.mark.slow
def test_rollouts_and_updates_overlap_by_one_version_and_survive_a_killed_learner(
    serve, model_path, tmp_path
):
    overlapped = section(3, max_staleness=1)

    train_grpo(
        inputs(serve(load_learner_killer), tmp_path, model_path, grpo=overlapped), lambda *_: None
    )

    written = lines(tmp_path)
    assert [(line["step"], line["policy_version_out"]) for line in written] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    assert [line["attempt"] for line in written] == [1, 2, 2]
    ages = [line["rollout/staleness"] for line in written]
    assert ages[0] == 0
    assert max(ages) == 1
    assert [line["policy_version"] for line in written] == [0 - ages[0], 1 - ages[1], 2 - ages[2]]
    assert {line["rollout/refused"] for line in written} == {0}


@pytest.mark.slow
def test_rollouts_that_nobody_waits_for_any_more_are_ended_in_their_actor(local_ray):
    actor = untyped(RolloutActor.options(num_cpus=0).remote(HangsOnPatient0, CharTokenizer))
    plan = RolloutPlan(
        format="guided",
        kind="question_decomposition",
        max_depth=1,
        max_new_tokens=400,
        temperature=1.0,
    )
    sampler = ActorSampler(actor, plan)
    ray.get(actor.num_done.remote(), timeout=60)  # it is up: what is given up has begun

    def batch(name):
        prompt = RolloutPrompt(patient_id=name, token_ids=(65,))
        return RolloutBatch(
            prompts=(prompt,), group_size=1, least=BASE_POLICY, seed=1, max_in_flight=1
        )

    async def give_up_on_one_and_ask_for_another():
        hanging = asyncio.create_task(sampler.sample_groups(batch("p0")))
        waiting = asyncio.create_task(sampler.sample_groups(batch("p1")))
        await asyncio.wait([waiting], timeout=1.0)
        was_held_up = not waiting.done()
        hanging.cancel()
        return was_held_up, await asyncio.wait_for(waiting, 60)

    was_held_up, groups = asyncio.run(give_up_on_one_and_ask_for_another())
    ray.kill(actor)

    assert was_held_up
    assert groups[0][0].patient_id == "p1"


@pytest.mark.slow
def test_a_sync_that_did_not_happen_is_the_error_of_the_stage(serve, model_path, tmp_path):
    run_id = serve(load_deaf)

    with pytest.raises(
        TrainingError, match=r"the sync of version 1: .* at most 1\.000, got 1?\d\."
    ):
        train_grpo(inputs(run_id, tmp_path, model_path, grpo=section(1)), lambda *_: None)
