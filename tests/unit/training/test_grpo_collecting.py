import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.rollouts import RolloutSampler
from ehr.errors import ServiceError, StalePolicyError
from services.types import PolicyVersion
from tests.learner_fakes import grpo_inputs, grpo_patients
from tests.policy_engines import ScriptedPolicy
from tests.scripted import CharTokenizer, sensible
from training.config.grpo import GrpoSection
from training.grpo.collecting import RolloutCollector
from training.grpo.patients import PatientStream

DAPO = GrpoSection(
    steps=3,
    group_size=2,
    max_depth=1,
    max_new_tokens=400,
    dynamic_sampling=True,
    max_refills=2,
    max_staleness=1,
)


def dead_or_sensible(dead):
    """Always the same answer about the patients in `dead`, a seeded one about the others."""

    def script(call):
        if not any(f"Patient {name[1:]}:" in call.prompt for name in dead):
            return sensible(call)
        names = "pH, Glucose, Weight, Height, Temperature\n"
        return {"choice": "F", "features": names, "probability": "0.50\n"}.get(call.kind, "q\n")

    return script


@dataclass(eq=False)
class Asked:
    patient: str
    least: int
    gate: asyncio.Future
    was_cancelled: bool = False


@dataclass(eq=False)
class GatedSampler:
    """Real rollouts of a script, each group when the test opens its gate."""

    section: GrpoSection
    dead: tuple = ()
    asked: list = field(default_factory=list)

    def __post_init__(self):
        self.inputs = grpo_inputs(Path("unused"), grpo=self.section, patients=grpo_patients(8))
        self.served = ScriptedPolicy()
        self.served.script = dead_or_sensible(self.dead)
        self.sampler = RolloutSampler(self.served, CharTokenizer(), self.inputs.rollout_plan)
        self.collector = RolloutCollector(self.inputs, self, CharTokenizer())

    async def sample_groups(self, batch):
        patient = batch.prompts[0].patient_id
        asked = Asked(patient, batch.least.version, asyncio.get_running_loop().create_future())
        self.asked.append(asked)
        try:
            await asked.gate
        except asyncio.CancelledError:
            asked.was_cancelled = True
            raise
        return await self.sampler.sample_groups(batch)

    def draw(self, step, refill=0):
        stream = PatientStream(self.inputs.patients, self.section)
        return [patient.patient_id for patient in stream.draw(step, refill)]

    @property
    def shut(self):
        return [asked for asked in self.asked if not asked.gate.done()]

    async def open(self, *asked):
        for each in asked:
            each.gate.set_result(None)
        await settle()

    async def collect(self, step, rng=None):
        """A step whose groups finish in the order of `rng`, or as they were asked for."""
        task = asyncio.create_task(self.collector.collect(step))
        await settle()
        while not task.done():
            await self.open(rng.choice(self.shut) if rng else self.shut[0])
        return task.result()


async def settle():
    for _ in range(100):
        await asyncio.sleep(0)


def patients(collected):
    return [group.patient.patient_id for group in collected.groups]


def first_drawn(step=1):
    return GatedSampler(DAPO).draw(step)[0]


async def test_a_refill_is_asked_for_as_soon_as_it_is_certain_that_it_is_needed():
    gated = GatedSampler(DAPO, dead=(first_drawn(),))
    task = asyncio.create_task(gated.collector.collect(1))
    await settle()

    before = [asked.patient for asked in gated.asked]
    await gated.open(gated.asked[0])
    after = [asked.patient for asked in gated.asked]
    task.cancel()

    assert before == gated.draw(1)
    assert after == gated.draw(1) + gated.draw(1, 1)
    assert not gated.asked[1].gate.done()


async def test_without_dead_groups_nothing_more_is_asked_for():
    gated = GatedSampler(DAPO)

    collected = await gated.collect(1)

    assert [asked.patient for asked in gated.asked] == patients(collected) == gated.draw(1)
    assert collected.metrics["rollout/refills"] == collected.metrics["tokens/wasted"] == 0


async def test_without_dynamic_sampling_dead_groups_are_trained_and_counted():
    gated = GatedSampler(DAPO.model_copy(update={"dynamic_sampling": False}), dead=(first_drawn(),))

    collected = await gated.collect(1)

    assert patients(collected) == gated.draw(1)
    assert collected.metrics["rollout/dead_groups"] == 1
    assert collected.metrics["rollout/dead_groups_drawn"] == 1


async def test_a_dead_group_gives_its_place_to_the_first_live_group_of_the_refill():
    gated = GatedSampler(DAPO, dead=(first_drawn(),))

    collected = await gated.collect(1)

    assert patients(collected) == [gated.draw(1, 1)[0], gated.draw(1)[1]]
    assert collected.metrics["rollout/dead_groups"] == 0
    assert collected.metrics["rollout/dead_groups_drawn"] == 1
    assert collected.metrics["rollout/refills"] == 1
    assert collected.metrics["tokens/wasted"] > 0


async def test_a_live_group_left_over_from_a_refill_replaces_a_dead_one_of_the_next_step():
    dead = (first_drawn(1), first_drawn(2))
    gated = GatedSampler(DAPO, dead=dead)

    await gated.collect(1)
    collected = await gated.collect(2)

    assert patients(collected) == [gated.draw(1, 1)[1], gated.draw(2)[1]]
    assert collected.metrics["rollout/from_buffer"] == 1
    assert collected.metrics["rollout/refills"] == 0
    assert collected.metrics["rollout/staleness"] == 1


async def test_what_is_left_over_is_dropped_when_it_is_too_old_for_the_next_step():
    gated = GatedSampler(DAPO, dead=(first_drawn(1), first_drawn(3)))
    await gated.collect(1)
    unused = await gated.collect(2)
    gated.served.policy_version = PolicyVersion(lineage="grpo", version=1)
    gated.collector.published_version = 1

    collected = await gated.collect(3)

    assert unused.metrics["tokens/wasted"] > 0
    assert collected.metrics["rollout/from_buffer"] == 0
    assert collected.metrics["rollout/refills"] == 1
    assert {asked.least for asked in gated.asked[-4:]} == {1}


async def test_without_staleness_nothing_is_left_over_and_what_still_runs_is_ended():
    section = DAPO.model_copy(update={"max_staleness": 0})
    gated = GatedSampler(section, dead=(first_drawn(1),))

    await gated.collect(1)
    await settle()

    assert [asked.was_cancelled for asked in gated.asked] == [False, False, False, True]


async def test_refills_end_at_their_limit_and_dead_groups_keep_their_places():
    gated = GatedSampler(DAPO, dead=tuple(f"p{i}" for i in range(8)))

    collected = await gated.collect(1)

    assert patients(collected) == gated.draw(1)
    assert collected.metrics["rollout/refills"] == 2
    assert collected.metrics["rollout/dead_groups"] == 2
    assert collected.metrics["rollout/dead_groups_drawn"] == 6


@settings(max_examples=25)
@given(
    dead=st.sets(st.sampled_from([f"p{i}" for i in range(8)])),
    seed=st.integers(0, 10**6),
    staleness=st.integers(0, 1),
)
def test_the_order_of_completion_does_not_change_which_groups_are_trained(dead, seed, staleness):
    async def collected(rng):
        section = DAPO.model_copy(update={"max_staleness": staleness})
        gated = GatedSampler(section, dead=tuple(sorted(dead)))
        steps = []
        for step in (1, 2):
            gated.collector.published_version = 1 - staleness if step == 2 else 0
            gated.served.policy_version = replace(
                gated.served.policy_version, version=gated.collector.published_version
            )
            steps.append(await gated.collect(step, rng))
        return steps

    steps = asyncio.run(collected(random.Random(seed)))
    in_order = asyncio.run(collected(None))

    for step, expected in zip(steps, in_order, strict=True):
        assert step.groups == expected.groups
        assert len(set(patients(step))) == 2
        for name in ("rollout/refills", "rollout/from_buffer", "rollout/staleness"):
            assert step.metrics[name] == expected.metrics[name]


async def test_a_sync_inside_a_rollout_is_counted_and_its_older_policy_decides_its_age():
    gated = GatedSampler(DAPO)
    gated.served = Moving(3)
    gated.sampler = RolloutSampler(gated.served, CharTokenizer(), gated.inputs.rollout_plan)

    collected = await gated.collect(2)

    assert collected.metrics["rollout/straddled"] > 0
    assert collected.metrics["rollout/staleness"] == 1
    assert collected.metrics["policy_version"] == 0
    assert 0 < collected.metrics["rollout/staleness_mean"] < 1


class Moving(ScriptedPolicy):
    """Version 0 for the first requests, then version 1."""

    def __init__(self, num_old):
        super().__init__()
        self.num_old = num_old

    async def generate(self, request):
        version = int(len(self.requests) >= self.num_old)
        self.policy_version = PolicyVersion(lineage="grpo", version=version)
        return await super().generate(request)


async def test_rollouts_by_a_policy_that_is_too_old_are_refused_and_sampled_again():
    gated = GatedSampler(DAPO)
    gated.collector.published_version = 2
    gated.served.policy_version = PolicyVersion(lineage="grpo", version=0)
    task = asyncio.create_task(gated.collector.collect(3))
    await settle()
    await gated.open(gated.asked[0])
    gated.served.policy_version = PolicyVersion(lineage="grpo", version=1)
    while not task.done():
        await gated.open(gated.shut[0])

    assert [asked.patient for asked in gated.asked] == [*gated.draw(3), gated.draw(3)[0]]
    assert task.result().metrics["rollout/refused"] == 1
    assert task.result().metrics["rollout/staleness"] == 1


async def test_generators_that_stay_behind_are_an_error_of_the_stage():
    gated = GatedSampler(DAPO)
    gated.served.policy_version = PolicyVersion(lineage="grpo", version=0)

    with pytest.raises(StalePolicyError, match=r"from version 1 on .* version 0 in each of 3"):
        await gated.collect(3)


async def test_a_failure_of_one_group_ends_the_others():
    gated = GatedSampler(DAPO)
    task = asyncio.create_task(gated.collector.collect(1))
    await settle()

    gated.asked[1].gate.set_exception(ServiceError("no replica"))
    await settle()

    with pytest.raises(ServiceError, match="no replica"):
        task.result()
    assert gated.asked[0].was_cancelled
