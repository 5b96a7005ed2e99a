"""Stage-2 with `grpo.max_staleness: 1`: rollouts and updates at the same time."""

import asyncio
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.rollouts import RolloutSampler
from ehr.errors import ServiceError, StalePolicyError
from services.types import PolicyVersion
from tests.learner_fakes import grpo_inputs
from tests.policy_engines import ScriptedPolicy
from tests.scripted import CharTokenizer
from tests.typed import known
from training.config.grpo import GrpoSection
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.orders import NewPolicy, OrderKind
from training.grpo.patients import PatientStream
from training.learner.checkpoints import PolicyFolder

EXACT = (-math.log(256),) * 4
SECTION = GrpoSection(steps=3, group_size=2, max_depth=1, max_new_tokens=400, max_staleness=1)


def new_policy(step):
    return NewPolicy(adapter=f"step {step}".encode(), adapter_config="{}", scaling=1.0)


async def settle():
    for _ in range(30):
        await asyncio.sleep(0)


class SteppedPolicy(ScriptedPolicy):
    """Replies, and takes policies, when the test says so; sometimes by a replica that is behind."""

    def __init__(self):
        super().__init__()
        self.waiting = []
        self.newest = 0

    async def _turn(self):
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        return await turn

    async def generate(self, request):
        is_behind = await self._turn()
        version = max(0, self.newest - 2) if is_behind else self.newest
        self.policy_version = PolicyVersion(lineage="grpo", version=version)
        return await super().generate(request)

    async def publish(self, record):
        await self._turn()
        self.newest = record.version.version
        return await super().publish(record)

    async def reply(self, place=0, is_behind=False):
        turn = self.waiting.pop(place)
        if not turn.done():
            turn.set_result(is_behind)
        await settle()

    async def reply_to_all(self):
        while self.waiting:
            await self.reply()


class Run:
    """A controller, the turns it is taking, a learner that obeys, and all rollouts it was given."""

    def __init__(self, folder, section=SECTION, served=None):
        self.inputs = grpo_inputs(folder, grpo=section)
        self.served = served or SteppedPolicy()
        self.sampler = RolloutSampler(self.served, CharTokenizer(), self.inputs.rollout_plan)
        self.controller = GrpoController(self.inputs, self.served, self)
        self.turns = []
        self.rollouts = {}
        self.handed_out = {}
        self.learner = None
        self.last_order = 0

    async def sample_groups(self, batch):
        groups = await self.sampler.sample_groups(batch)
        for rollout in groups[0]:
            self.rollouts.setdefault((rollout.patient_id, rollout.token_ids), []).append(rollout)
        return groups

    async def take_turns(self):
        while self.controller.may_advance:
            self.turns.append(asyncio.create_task(self.controller.advance()))
            await settle()

    def join(self):
        self.learner = self.controller.join(new_policy(0))
        self.last_order = 0

    def obey(self):
        """Do what the learner was told; what it is given to train is looked at first."""
        order = self.controller.order(self.last_order)
        if order is None or order.kind is OrderKind.STOP:
            return
        self.last_order = order.number
        if order.kind is OrderKind.PROBE:
            self.controller.report_canary(known(self.learner).attempt, EXACT)
            return
        self.look_at(order.batch)
        step = self.learner_step + 1
        self.controller.report_step(known(self.learner).attempt, new_policy(step), {"loss": 0.5})

    @property
    def learner_step(self):
        return self.controller.steps_done

    def look_at(self, batch):
        assert batch.step == self.controller.steps_done + 1
        self.handed_out[batch.step] = [group.patient_id for group in batch.groups]
        for group in batch.groups:
            for response in group.responses:
                written = self.rollouts[group.patient_id, response]
                newest = max(rollout.oldest_policy.version for rollout in written)
                assert batch.step - 1 - newest <= self.inputs.grpo.max_staleness

    async def stop(self):
        for turn in self.turns:
            turn.cancel()
        await asyncio.gather(*self.turns, return_exceptions=True)

    @property
    def has_ended(self):
        return self.controller.state in (GrpoState.FINISHED, GrpoState.FAILED)

    def lines(self):
        text = (self.inputs.out_dir / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


async def to_training(run):
    """Version 0 published and checked, step 1 with the learner."""
    run.join()
    while run.controller.state is not GrpoState.TRAINING:
        await run.take_turns()
        await run.served.reply_to_all()
        if run.controller.state is GrpoState.PROBING:
            run.obey()
    await run.take_turns()


async def test_the_next_batch_is_sampled_while_the_learner_trains_this_one(tmp_path):
    run = Run(tmp_path)
    await to_training(run)

    await run.served.reply_to_all()
    run.obey()
    await run.take_turns()
    await run.served.reply_to_all()
    run.obey()  # the canary of version 1

    assert run.controller.state is GrpoState.TRAINING
    assert known(known(run.controller.order(0)).batch).step == 2
    line = run.lines()[0]
    assert (line["policy_version"], line["rollout/staleness"]) == (0, 0)
    run.obey()
    await run.take_turns()
    await run.served.reply_to_all()
    run.obey()
    line = run.lines()[1]
    assert (line["policy_version"], line["rollout/staleness"]) == (0, 1)
    assert line["time/rollout_wait_s"] == 0
    await run.stop()


async def test_without_staleness_nothing_is_sampled_while_the_learner_trains(tmp_path):
    run = Run(tmp_path, SECTION.model_copy(update={"max_staleness": 0}))

    await to_training(run)

    assert run.served.waiting == []
    assert not run.controller.may_advance


async def test_a_sync_does_not_wait_for_the_rollouts_that_are_being_sampled(tmp_path):
    run = Run(tmp_path)
    await to_training(run)
    pending = len(run.served.waiting)

    run.obey()
    await run.take_turns()
    await run.served.reply(place=pending)

    assert pending > 0
    assert run.controller.state is GrpoState.PROBING
    assert run.served.newest == 1
    run.obey()
    assert run.controller.state is GrpoState.COLLECTING
    await run.served.reply_to_all()
    assert run.controller.state is GrpoState.TRAINING
    await run.stop()


async def test_a_driver_that_is_killed_loses_the_prefetched_rollouts_and_no_commit(tmp_path):
    run = Run(tmp_path)
    await to_training(run)
    await run.served.reply_to_all()
    run.obey()
    await run.stop()

    resumed = Run(tmp_path)
    await to_training(resumed)
    resumed.obey()

    stream = PatientStream(resumed.inputs.patients, SECTION)
    assert resumed.handed_out == {2: [patient.patient_id for patient in stream.draw(2)]}
    assert resumed.lines()[0]["step"] == 1
    await resumed.stop()


async def test_the_first_failure_is_the_one_that_is_told(tmp_path):
    run = Run(tmp_path)
    await to_training(run)

    run.controller.fail(ServiceError("the first"))
    run.served.waiting[0].set_exception(ServiceError("the second"))
    await settle()

    assert str(run.controller.failure) == "the first"
    assert run.controller.state is GrpoState.FAILED
    await run.stop()


def test_rollouts_that_lag_need_the_importance_weight():
    with pytest.raises(ValueError, match=r"max_staleness=1 needs grpo\.importance_cap"):
        GrpoSection(max_staleness=1, importance_cap=None)


async def random_schedule(folder, rng, section, behind):
    """A run whose parts take their turns in a random order, with restarts, to its end."""
    run = Run(folder, section)
    handed_out, committed = {}, 0
    for _ in range(5000):
        if run.has_ended:
            break
        moves = ["turn", "reply", "reply", "reply", "learner"]
        if rng.random() < 0.02:
            moves = ["restart learner", "restart driver"]
        match rng.choice(moves):
            case "turn":
                await run.take_turns()
            case "reply" if run.served.waiting:
                place = rng.randrange(len(run.served.waiting))
                await run.served.reply(place, is_behind=rng.random() < behind)
            case "learner" if run.learner is not None:
                run.obey()
            case "learner" | "restart learner":
                run.join()
            case "restart driver":
                await run.stop()
                run = Run(folder, section, served=SteppedPolicy())
                latest = PolicyFolder(run.inputs.out_dir / "policies").latest()
                run.served.newest = latest.version if latest else 0
        assert run.controller.steps_done >= committed
        committed = run.controller.steps_done
        handed_out |= run.handed_out
    await run.stop()
    return run, handed_out


@pytest.mark.parametrize("staleness", [0, 1])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_no_schedule_trains_what_an_older_policy_than_allowed_has_sampled(
    staleness, seed, tmp_path_factory
):
    section = SECTION.model_copy(update={"max_staleness": staleness})
    folder = tmp_path_factory.mktemp("run")

    run, handed_out = asyncio.run(random_schedule(folder, random.Random(seed), section, 0.0))

    assert run.controller.state is GrpoState.FINISHED
    stream = PatientStream(run.inputs.patients, section)
    assert handed_out == {
        step: [patient.patient_id for patient in stream.draw(step)] for step in (1, 2, 3)
    }
    for line in run.lines():
        assert line["policy_version_out"] == line["step"]
        assert line["policy_version"] + line["rollout/staleness"] == line["step"] - 1
        assert line["rollout/staleness"] <= staleness


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_a_replica_that_ignores_what_it_may_serve_is_found_out(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")

    run, _ = asyncio.run(random_schedule(folder, random.Random(seed), SECTION, 0.05))

    is_refused = isinstance(run.controller.failure, StalePolicyError)
    assert is_refused or run.controller.state is GrpoState.FINISHED
