"""The control plane under kills, delays, replays and late joins, on the real state machines.

Store, followers, clients and controller are the product's own; `tests.control_plane` stands in for
Ray, Serve and the engine. A schedule is drawn by hypothesis; at its end everything that is under
way arrives, and the generators must serve what the learner committed last (one that joined while
it was published: from its next request on).
"""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from actors.rollouts import Rollout, RolloutBatch, RolloutPrompt
from ehr.errors import StalePolicyError
from services import clients, policy_store
from services.clients import GeneratorClient
from services.following import PolicyFollower
from services.types import Completion, GenerateRequest, PolicyVersion, Sampling
from tests.control_plane import TIMEOUT_S, Application, Network, StoreActor
from tests.learner_fakes import LINEAGE, grpo_inputs
from training.config.grpo import GrpoSection
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.orders import NewPolicy, Order, OrderKind
from training.learner.checkpoints import PolicyFolder

RESPONSE_TOKENS = 4
MOST_REPLICAS = 3
SECTION = GrpoSection(steps=8, group_size=2, patients_per_step=2)
INPUTS = grpo_inputs(Path("unused"), format="free")
MEMORY = Path("/dev/shm")
"""A commit waits for its disk; schedules need none."""

PICKS = st.integers(0, 63)


def new_policy(step: int, attempt: int) -> NewPolicy:
    """An adapter that no other step or attempt makes, and that the fake engine scores by."""
    return NewPolicy(
        adapter=f"step {step} by {attempt}".encode(),
        adapter_config="{}",
        scaling=1.0 + 10 * step + attempt,
    )


def short_request(least: PolicyVersion) -> GenerateRequest:
    """A request of one prompt token."""
    sampling = Sampling(max_tokens=2, temperature=1.0, seed=0)
    return GenerateRequest(prompt_token_ids=(1,), sampling=sampling, least=least, session="p")


class Learner:
    """A group of ranks: what survives its death are its checkpoints and its last report."""

    def __init__(self, controller: GrpoController, checkpoints: dict[int, NewPolicy]) -> None:
        fresh = new_policy(0, 0)
        needs_fresh = controller.state is GrpoState.STARTING
        start = controller.join(fresh if needs_fresh else None)
        checkpoints.setdefault(0, fresh)
        self.controller = controller
        self.attempt = start.attempt
        self.step = start.step
        self.policy = checkpoints[start.step]
        self.last_order = 0
        self.reports = False
        """Whether it waits for the controller to take a report."""


class ControlPlane(RuleBasedStateMachine):
    """One run: a learner, a controller, a store, and up to three replicas."""

    def __init__(self) -> None:
        super().__init__()
        memory = MEMORY if MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="eag-plane-", dir=memory))
        self.violations: list[str] = []
        self.network = Network()
        self.store = StoreActor(self.network, self.folder)
        self.application = Application(self.network, self.store, self.violations.append)
        self.patches = [
            patch.object(policy_store.ray, "get_actor", lambda *_, **__: self.store),
            patch.object(clients.serve, "get_app_handle", lambda _: self.application),
        ]
        for each in self.patches:
            each.start()
        self.client = GeneratorClient("run", TIMEOUT_S)
        self.policies = PolicyFolder(self.folder / "grpo" / "policies")
        self.committed: list[str] = []
        self.served_number = 0
        self.checkpoints: dict[int, NewPolicy] = {}
        self.learner: Learner | None = None
        self.joined: Learner | None = None
        """The learner that joined last, dead or alive: the one that the controller listens to."""
        self.asked: list[asyncio.Task[Any]] = []
        self.turns: list[asyncio.Task[None]] = []
        self.has_begun = False

    @initialize(staleness=st.integers(0, 1))
    def begin(self, staleness: int) -> None:
        """Rollouts and updates take turns, or overlap."""
        section = SECTION.model_copy(update={"max_staleness": staleness})
        self.inputs = replace(INPUTS, out_dir=self.folder / "grpo", grpo=section)
        self.start_controller()
        self.application.start()
        self.has_begun = True

    @rule(num=st.integers(1, 80))
    def work(self, num: int) -> None:
        """Everybody goes on, and messages arrive in the order they were sent."""
        self.go_on([0] * num)

    @rule(num=st.integers(1, 80), seed=st.integers(0, 1 << 16))
    def work_in_disorder(self, num: int, seed: int) -> None:
        """Everybody goes on, and messages arrive in any order."""
        self.go_on(random.Random(seed).choices(range(64), k=num))

    @rule(num=st.integers(1, 4), age=st.integers(-1, 2))
    def ask(self, num: int, age: int) -> None:
        """Somebody asks for answers: by the newest policy, an older one, one that is to come."""
        for _ in range(num):
            self.request(max(0, len(self.committed) - 1 - age))

    @rule()
    def join_replica(self) -> None:
        """A replica starts late."""
        if len(self.application.replicas) < MOST_REPLICAS:
            self.application.start()

    @rule(pick=PICKS)
    def kill_replica(self, pick: int) -> None:
        """A replica dies, whatever it is at."""
        replicas = self.application.replicas
        if replicas:
            self.application.kill(replicas[pick % len(replicas)])

    @rule(who=st.sampled_from(["store", "controller"]))
    def kill(self, who: str) -> None:
        """The store dies and comes back, or the controller does."""
        if who == "store":
            self.store.kill()
        else:
            self.start_controller()

    @rule(waits=st.booleans())
    def kill_learner(self, waits: bool) -> None:
        """The learner dies, whatever it is at, or just when a report of it is under way."""
        for _ in range(80 * waits):
            self.learner_turn()
            if self.learner is not None and self.learner.reports:
                break
            self.go_on([2])
        self.learner = None

    @rule(what=st.sampled_from(["publish", "sync", "answer"]), pick=PICKS, old=PICKS)
    def replay(self, what: str, pick: int, old: int) -> None:
        """Something arrives once more: a publication, a call to sync, an answer of the store."""
        if what == "publish":
            self.store.replay(pick)
        else:
            self.application.replay_sync(pick, old if what == "answer" else None)

    @invariant()
    def nothing_is_wrong(self) -> None:
        """What was noticed on the way, the controller's own checks included."""
        assert not self.violations, self.violations
        assert self.controller.failure is None
        number = self.store.store.current().number
        assert number >= self.served_number, "the store went back"
        self.served_number = number

    def teardown(self) -> None:
        """Let everything arrive, check what must hold then, and clean up."""
        try:
            if self.has_begun and not self.violations:
                self.come_to_rest()
                self.check_rest()
        finally:
            for each in self.patches:
                each.stop()
            self.network.close()
            shutil.rmtree(self.folder)

    def go_on(self, picks: Sequence[int]) -> None:
        for pick in picks:
            if pick % 4 == 0:
                self.learner_turn()
            if pick % 16 == 1:
                self.request(0)
            self.controller_turn()
            if not self.network.deliver(pick):
                self.network.loop.pass_time(5.0)

    def come_to_rest(self) -> None:
        if not self.application.replicas:
            self.application.start()
        for _ in range(1000):
            self.learner_turn(trains=False)
            self.controller_turn()
            if self.network.deliver(0):
                continue
            self.network.loop.pass_time(5.0)
            turns = self.controller.may_advance or self.network.under_way
            reporting = self.learner is None or self.controller.state is GrpoState.PROBING
            if not turns and not reporting:
                return
        raise AssertionError(f"no rest in state {self.controller.state}")

    def check_rest(self) -> None:
        self.nothing_is_wrong()
        newest = PolicyVersion(lineage=LINEAGE, version=len(self.committed) - 1)
        assert self.application.running == self.application.replicas
        for replica in self.application.running:
            assert replica.follower is not None
            if replica not in self.application.told:
                # It joined while the policy was published: its next request tells it.
                self.let_answer(replica.follower, newest)
            served = replica.follower.policy()
            assert (served.version, served.checksum) == (newest, self.committed[-1])
        for task in self.asked:
            assert task.done(), "a request was never answered"
            refusal = task.exception()
            assert refusal is None or isinstance(refusal, StalePolicyError)

    def start_controller(self) -> None:
        """A controller on the run folder, as the first one or after the death of another."""
        self.learner = None
        for turn in self.turns:
            turn.cancel()
        self.network.loop.settle()
        self.turns.clear()
        self.controller = GrpoController(self.inputs, self.client, self, clock=lambda: 0.0)

    def controller_turn(self) -> None:
        while self.controller.may_advance:
            self.turns.append(self.network.start(self.controller.advance()))

    def learner_turn(self, trains: bool = True) -> None:
        if self.learner is None:
            self.joined = self.learner = Learner(self.controller, self.checkpoints)
            self.note_commits(self.learner.policy)
            return
        learner = self.learner
        order = None if learner.reports else self.controller.order(learner.last_order)
        if order is None or (order.kind is OrderKind.TRAIN and not trains):
            return
        learner.last_order = order.number
        if order.kind is OrderKind.PROBE:
            logprobs = (-1.0 - learner.policy.scaling,) * RESPONSE_TOKENS
            self.report(learner, "report_canary", logprobs)
        elif order.kind is OrderKind.TRAIN:
            self.train(learner, order)

    def train(self, learner: Learner, order: Order) -> None:
        assert order.batch is not None
        if order.batch.step != learner.step + 1:
            self.violations.append(f"step {order.batch.step} follows step {learner.step}")
        learner.step = order.batch.step
        learner.policy = new_policy(learner.step, learner.attempt)
        self.checkpoints[learner.step] = learner.policy
        self.report(learner, "report_step", learner.policy, {})

    def report(self, learner: Learner, method: str, *values: Any) -> None:
        """A report is under way; it is lost only with the controller that it is for."""
        learner.reports = True

        def arrive() -> None:
            learner.reports = False
            if learner.controller is not self.controller:
                return
            before = self.controller.steps_done
            getattr(self.controller, method)(learner.attempt, *values)
            self.note_commits(learner.policy)
            has_committed = self.controller.steps_done > before
            is_commit = method == "report_step" and learner is self.joined
            if has_committed != is_commit:
                self.violations.append(f"{method} of attempt {learner.attempt} at step {before}")

        self.network.send(arrive)

    def note_commits(self, by: NewPolicy) -> None:
        record = self.policies.latest()
        if record is None or record.version == len(self.committed) - 1:
            return
        if record.version != len(self.committed):
            self.violations.append(f"version {record.version} follows {len(self.committed) - 1}")
        if self.policies.adapter(record.version) != by.adapter:
            self.violations.append(f"version {record.version} is not what was reported")
        self.committed.append(record.sha256)

    def request(self, version: int) -> None:
        least = PolicyVersion(lineage=LINEAGE, version=version)
        self.asked.append(self.network.start(self.client.generate(short_request(least))))

    def let_answer(self, follower: PolicyFollower, least: PolicyVersion) -> None:
        asked = self.network.start(follower.generate(short_request(least)))
        while not asked.done():
            assert self.network.deliver(0), "a request was never answered"
        asked.result()

    async def sample_groups(self, batch: RolloutBatch) -> list[list[Rollout]]:
        """Rollouts of one request each: the controller's sampler."""

        async def sample(prompt: RolloutPrompt, index: int) -> Rollout:
            request = GenerateRequest(
                prompt_token_ids=prompt.token_ids,
                sampling=Sampling(max_tokens=2, temperature=1.0, seed=index),
                least=batch.least,
                session=prompt.patient_id,
            )
            (completion,) = await self.client.generate(request)
            self.check_committed(completion)
            return Rollout(
                patient_id=prompt.patient_id,
                prompt_token_ids=prompt.token_ids,
                token_ids=completion.token_ids,
                model_written=(True,) * len(completion.token_ids),
                generator_logprobs=completion.logprobs,
                constrained=(False,) * len(completion.token_ids),
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

    def check_committed(self, completion: Completion) -> None:
        version = completion.policy_version
        is_known = version.lineage == LINEAGE and version.version < len(self.committed)
        if not is_known or completion.policy_checksum != self.committed[version.version]:
            self.violations.append(f"tokens of {version}, which the learner did not commit")


def run_schedules(num: int, steps: int) -> None:
    """Run so many schedules of at most so many rules."""
    run_state_machine_as_test(
        ControlPlane,
        settings=settings(
            max_examples=num,
            stateful_step_count=steps,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_no_schedule_breaks_the_control_plane() -> None:
    run_schedules(300, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_schedule_of_two_thousand_breaks_the_control_plane() -> None:
    run_schedules(2_000, 12)
