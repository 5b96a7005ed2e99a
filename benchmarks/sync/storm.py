"""Stage-2's control plane on a real Ray, with processes that die at random.

The controller, the store, the clients and Serve's replicas are the product's own; the replicas hold
a tiny model, and the learner draws its adapters at random. The invariants are those of
`tests/property/test_control_plane.py`.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.schema import ReplicaState
from safetensors.torch import save

from actors.rollouts import Rollout, RolloutBatch, RolloutPrompt
from benchmarks.sync.tiny_engine import TinyEngine, load_tiny, write_tiny_model
from ehr.language.chat import ChatFrame
from services.adapters import adapter_checksum
from services.applications import generator_application
from services.clients import GeneratorClient
from services.config import GeneratorSection, ModelSection
from services.generator import DEPLOYMENT, start_generator, stop_generator
from services.models import LocalModel
from services.policy_store import NAMESPACE, PolicyRecord
from services.types import (
    Acknowledgement,
    Completion,
    GenerateRequest,
    Policy,
    PolicyVersion,
    Sampling,
    Scored,
)
from tests.learner_fakes import LINEAGE, grpo_inputs
from training.config.grpo import GrpoSection
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.orders import NewPolicy, OrderKind
from training.learner.checkpoints import PolicyFolder

RUN_ID = "storm"
REPLICAS = 3
TIMEOUT_S = 240.0
"""Of a call, with the start of a replacement in it."""
CALM_S = (2.0, 16.0)
"""A process is killed at random times, so far apart: a replacement takes about 10 s to join, and
when each is killed while it starts there is nothing to watch."""
LONGEST_STEP_S = 0.8
"""A step of the learner takes a random time up to this, so that replacements join in between."""
STORE_SHARE = 0.15
"""Share of the kills that hit the policy store."""
RESTART_SHARE = 0.04
"""Share of the learner's turns before which it, or the controller, starts again."""
SAME = 1e-4
"""Nats within which two processes compute the same log-probability."""


def adapter(engine: TinyEngine, seed: int) -> bytes:
    """A random LoRA of rank 4 on every projection, large enough to be told from another."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in engine.linear_shapes().items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, shape[1], generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.3 * torch.randn(shape[0], 4, generator=generator)
    return save(tensors)


class Watched:
    """The generator's client, with an eye on every answer."""

    def __init__(self, client: GeneratorClient, policies: PolicyFolder) -> None:
        self._client = client
        self._policies = policies
        self._committed: dict[int, str] = {}
        self._served: dict[str, PolicyVersion] = {}
        self.published: PolicyVersion | None = None
        self.publish_s: list[float] = []
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    @property
    def replicas(self) -> int:
        """Replicas that have answered so far."""
        return len(self._served)

    async def publish(self, record: PolicyRecord) -> list[Acknowledgement]:
        """See `GeneratorClient.publish`."""
        start = time.monotonic()
        replies = await self._client.publish(record)
        self.publish_s.append(time.monotonic() - start)
        for reply in replies:
            self._note(reply.replica, reply.version)
        self.published = record.version
        return replies

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> list[Scored]:
        """See `GeneratorClient.score`."""
        replies = await self._client.score(prompt_token_ids, response_token_ids, least)
        for reply in replies:
            self._note(reply.replica, reply.version)
        return replies

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """See `GeneratorClient.generate`."""
        completions = await self._client.generate(request)
        for each in completions:
            self.counts["requests"] += 1
            self.counts["tokens"] += len(each.token_ids)
            version = each.policy_version
            if not version.satisfies(request.least):
                self.violations.append(f"{request.least} was answered by {version}")
            if each.policy_checksum != self._checksum(version):
                self.violations.append(f"tokens of {version}, which is not what was committed")
        return completions

    def _note(self, replica: str, version: PolicyVersion) -> None:
        before = self._served.get(replica, version)
        if before.lineage == version.lineage and version.version < before.version:
            self.violations.append(f"{replica} went back from {before} to {version}")
        self._served[replica] = version

    def _checksum(self, version: PolicyVersion) -> str:
        if version.lineage != LINEAGE:
            return ""
        if version.version not in self._committed:
            file = self._policies.adapter_folder(version.version) / "adapter_model.safetensors"
            content = file.read_bytes() if file.exists() else b"never committed"
            self._committed[version.version] = adapter_checksum(content)
        return self._committed[version.version]


class Learner:
    """A learner group in this process; its checkpoints outlive it."""

    def __init__(self, controller: GrpoController, engine: TinyEngine, saved: dict[int, bytes]):
        self._controller = controller
        self._engine = engine
        self._saved = saved
        saved.setdefault(0, adapter(engine, 0))
        is_first = controller.state is GrpoState.STARTING
        start = controller.join(_new_policy(saved[0]) if is_first else None)
        self._attempt = start.attempt
        self._step = start.step
        self._last = 0

    async def act(self) -> None:
        """Do what the controller orders."""
        order = self._controller.order(self._last)
        if order is None:
            return
        self._last = order.number
        if order.kind is OrderKind.PROBE and order.canary is not None:
            await load(self._engine, self._step, self._saved[self._step])
            logprobs = await self._engine.score(
                order.canary.prompt_token_ids, order.canary.response_token_ids
            )
            self._controller.report_canary(self._attempt, logprobs)
        elif order.kind is OrderKind.TRAIN:
            self._step += 1
            self._saved[self._step] = adapter(self._engine, 1000 * self._step + self._attempt)
            self._controller.report_step(self._attempt, _new_policy(self._saved[self._step]), {})


def _new_policy(content: bytes) -> NewPolicy:
    return NewPolicy(adapter=content, adapter_config="{}", scaling=0.5)


async def load(engine: TinyEngine, version: int, content: bytes) -> None:
    """Loads a committed adapter as a replica does."""
    policy = Policy(
        version=PolicyVersion(lineage=LINEAGE, version=version),
        adapter=content,
        scaling=0.5,
        checksum=adapter_checksum(content),
    )
    await engine.load_policy(policy)


class Sampler:
    """Rollouts of one request each."""

    def __init__(self, client: Watched) -> None:
        self._client = client

    async def sample_groups(self, batch: RolloutBatch) -> list[list[Rollout]]:
        """A group of rollouts for every prompt of the batch, in order."""

        async def sample(prompt: RolloutPrompt, index: int) -> Rollout:
            request = _request(prompt.token_ids, batch.least, prompt.patient_id, index)
            (completion,) = await self._client.generate(request)
            return Rollout(
                patient_id=prompt.patient_id,
                prompt_token_ids=prompt.token_ids,
                token_ids=completion.token_ids,
                model_written=(True,) * len(completion.token_ids),
                constrained=(False,) * len(completion.token_ids),
                generator_logprobs=completion.logprobs,
                text=completion.text,
                truncated=False,
                oldest_policy=completion.policy_version,
                newest_policy=completion.policy_version,
                num_requests=1,
                num_cut_lines=0,
            )

        return [
            list(await asyncio.gather(*[sample(prompt, i) for i in range(batch.group_size)]))
            for prompt in batch.prompts
        ]


def _request(
    prompt: tuple[int, ...], least: PolicyVersion, session: str, seed: int
) -> GenerateRequest:
    sampling = Sampling(max_tokens=4, temperature=1.0, seed=seed)
    return GenerateRequest(prompt_token_ids=prompt, sampling=sampling, least=least, session=session)


async def kill_at_random(counts: Counter[str], draw: random.Random) -> None:
    """Kills a replica, old or just starting, or the store, again and again."""
    while True:
        await asyncio.sleep(draw.uniform(*CALM_S))
        with contextlib.suppress(ValueError):  # it has died since it was listed
            if draw.random() < STORE_SHARE:
                store = ray.get_actor(f"policy-store-{RUN_ID}", namespace=NAMESPACE)
                ray.kill(store, no_restart=False)
                counts["store_kills"] += 1
            elif (await asyncio.to_thread(num_running)) > 1 and (replicas := replica_actors()):
                ray.kill(ray.get_actor(draw.choice(replicas), namespace="serve"))
                counts["replica_kills"] += 1


def num_running() -> int:
    """Replicas that answer.

    The last one is left alone: a generator none of whose replicas gets past its start is a failed
    deployment to Serve, and the end of a run.
    """
    application = serve.status().applications.get(generator_application(RUN_ID))
    if application is None:
        return 0
    return application.deployments[DEPLOYMENT].replica_states.get(ReplicaState.RUNNING, 0)


def replica_actors() -> list[str]:
    """Names of the replicas' actors, those that are still starting among them."""
    named: Any = ray.util.list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if f"generator-{RUN_ID}#" in each["name"])


async def ask_at_random(client: Watched, draw: random.Random) -> None:
    """Asks for answers by the newest policy all the time."""
    while True:
        if client.published is not None:
            session = f"p{draw.randrange(8)}"
            await client.generate(_request((1, 2, 3), client.published, session, draw.randrange(9)))
        await asyncio.sleep(0.02)


async def run_storm(folder: Path, syncs: int) -> dict[str, Any]:
    """One run of Stage-2 with so many syncs; a row of the result."""
    draw = random.Random(0)
    policies = PolicyFolder(folder / "grpo" / "policies")
    client = Watched(GeneratorClient(RUN_ID, TIMEOUT_S), policies)
    engine = TinyEngine(folder / "model")
    saved: dict[int, bytes] = {}
    # Version 0 is a sync too.
    grpo = GrpoSection(
        steps=syncs - 1, group_size=2, patients_per_step=2, canary_tolerance=10 * SAME
    )
    inputs = grpo_inputs(folder, run_id=RUN_ID, grpo=grpo)

    def start() -> tuple[GrpoController, Learner]:
        controller = GrpoController(inputs, client, Sampler(client))
        return controller, Learner(controller, engine, saved)

    started = time.monotonic()
    controller, learner = start()
    weather = [
        asyncio.create_task(kill_at_random(client.counts, draw)),
        asyncio.create_task(ask_at_random(client, draw)),
    ]
    while controller.state not in (GrpoState.FINISHED, GrpoState.FAILED):
        if controller.may_advance:
            await controller.advance()
            continue
        await asyncio.sleep(draw.uniform(0, LONGEST_STEP_S / 2))  # a step has two turns of it
        if draw.random() < RESTART_SHARE:
            if draw.random() < 0.5:
                controller, learner = start()
                client.counts["controller_restarts"] += 1
            else:
                learner = Learner(controller, engine, saved)
                client.counts["learner_restarts"] += 1
        before = controller.steps_done
        await learner.act()
        if controller.steps_done > before and controller.steps_done % 20 == 0:
            print(f"{controller.steps_done} syncs, {dict(client.counts)}", flush=True)
        for task in weather:
            if task.done():
                task.result()
    for task in weather:
        task.cancel()
    await asyncio.gather(*weather, return_exceptions=True)
    if controller.failure is not None:
        client.violations.append(f"the controller stopped: {controller.failure}")
    else:
        await check_rest(client, policies, engine)
    return {
        "part": "storm",
        "syncs": controller.steps_done + 1,
        "calls_of_publish": len(client.publish_s),
        "replicas": REPLICAS,
        "replicas_joined_late": client.replicas - REPLICAS,
        **dict(sorted(client.counts.items())),
        "violations": len(client.violations),
        "what": client.violations[:5],
        "seconds": time.monotonic() - started,
    }


async def check_rest(client: Watched, policies: PolicyFolder, engine: TinyEngine) -> None:
    """What must hold when nothing dies any more."""
    newest = policies.latest()
    assert newest is not None, "the storm commits policies"
    versions = sorted(
        int(path.name[1:]) for path in policies.adapter_folder(0).parents[1].iterdir()
    )
    if versions != list(range(newest.version + 1)):
        client.violations.append(f"versions have gaps: {versions}")
    version = PolicyVersion(lineage=LINEAGE, version=newest.version)
    prompt, response = (5, 6, 7), (8, 9, 10)
    async with asyncio.timeout(TIMEOUT_S):
        while len(replies := await client.score(prompt, response, version)) < REPLICAS:
            await asyncio.sleep(0.5)
    await load(engine, newest.version, policies.adapter(newest.version))
    wanted = await engine.score(prompt, response)
    for reply in replies:
        worst = max(abs(a - b) for a, b in zip(reply.logprobs, wanted, strict=True))
        if reply.version != version or worst > SAME:
            client.violations.append(f"{reply.replica} serves {reply.version}, off by {worst:.3g}")
    acknowledged = await client.publish(
        PolicyRecord(
            version=version,
            adapter_path=str(policies.adapter_folder(newest.version) / "adapter_model.safetensors"),
            checksum=newest.sha256,
            scaling=newest.scaling,
        )
    )
    if {each.checksum for each in acknowledged} != {newest.sha256}:
        client.violations.append(f"acknowledged at the end: {acknowledged}")
    client.publish_s.pop()  # nothing was new


def storm(folder: Path, syncs: int) -> dict[str, Any]:
    """Starts the replicas, runs the storm, ends them; Ray with Serve must be up."""
    write_tiny_model(folder / "model")
    model = LocalModel(
        path=folder / "model",
        name="tiny",
        source="random weights",
        sha256="0" * 64,
        description="two random layers",
        chat=ChatFrame(prefix="", suffix=""),
    )
    section = GeneratorSection(
        num_replicas=REPLICAS, cpus_per_replica=0.1, startup_timeout_s=TIMEOUT_S
    )
    start_generator(RUN_ID, folder, model, ModelSection(), section, load_tiny)
    try:
        return asyncio.run(run_storm(folder, syncs))
    finally:
        stop_generator(RUN_ID)
