import json
import math
from dataclasses import replace

import pytest
import torch

from actors.rollouts import PatternSpan, Rollout, RolloutSampler
from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError, ServiceError, TrainingError
from ehr.language.guided_format import PROBABILITY_REGEX
from services.adapters import adapter_checksum
from services.types import PolicyVersion, Scored
from tests.learner_fakes import grpo_inputs, grpo_patients
from tests.policy_engines import ScriptedPolicy
from tests.scripted import CharTokenizer
from tests.typed import known
from training.config.grpo import GrpoSection
from training.grpo.batch import score_group, training_batch
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.orders import NewPolicy, OrderKind
from training.grpo.patients import PatientStream
from training.learner.canary import CanaryRecord
from training.learner.checkpoints import ADAPTER_CONFIG_FILE, ADAPTER_FILE

EXACT = (-math.log(256),) * 4
FRESH = NewPolicy(adapter=b"fresh", adapter_config="{}", scaling=1.0)
MATCHER = FeatureMatcher(BENCHMARK_17)


def policy(step):
    return NewPolicy(adapter=f"step {step}".encode(), adapter_config="{}", scaling=1.0)


class Parts:
    """A controller on scripted parts, and the moves of a learner rank."""

    def __init__(self, folder, served=None, **changes):
        self.inputs = grpo_inputs(folder, **changes)
        self.served = served or ScriptedPolicy()
        self.sampler = RolloutSampler(self.served, CharTokenizer(), self.inputs.rollout_plan)
        self.controller = GrpoController(self.inputs, self.served, self.sampler)

    async def advance(self):
        while self.controller.may_advance:
            await self.controller.advance()

    async def to_training(self):
        start = self.controller.join(FRESH)
        await self.advance()
        self.controller.report_canary(start.attempt, EXACT)
        await self.advance()
        return start

    async def step(self, start):
        number = self.controller.steps_done + 1
        self.controller.report_step(start.attempt, policy(number), {"loss": 0.5})
        await self.advance()
        self.controller.report_canary(start.attempt, EXACT)
        await self.advance()

    def order(self):
        return known(self.controller.order(0))

    def lines(self):
        text = (self.inputs.out_dir / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def rollout(text="", written=(True, True), truncated=False, patient_id="p0"):
    version = PolicyVersion(lineage="grpo", version=0)
    return Rollout(
        patient_id=patient_id,
        prompt_token_ids=(1,),
        token_ids=(65,) * len(written),
        model_written=written,
        generator_logprobs=(-1.0,) * len(written),
        constrained=(False,) * len(written),
        text=text,
        truncated=truncated,
        oldest_policy=version,
        newest_policy=version,
        num_requests=1,
        num_cut_lines=0,
    )


async def test_without_stage1_the_learners_fresh_adapter_becomes_version_0(tmp_path):
    parts = Parts(tmp_path)

    assert parts.controller.state is GrpoState.STARTING
    start = parts.controller.join(FRESH)
    await parts.advance()

    assert start.step == 0
    assert parts.served.published[0].version == PolicyVersion(lineage="grpo", version=0)
    assert parts.controller.state is GrpoState.PROBING


async def test_with_stage1_its_adapter_is_published_before_a_learner_is_up(tmp_path):
    (tmp_path / ADAPTER_FILE).write_bytes(b"stage 1")
    (tmp_path / ADAPTER_CONFIG_FILE).write_text("{}")
    parts = Parts(tmp_path, stage1_adapter=tmp_path)

    await parts.advance()

    assert known(parts.served.published[0].adapter_path).endswith(
        "policies/v0/adapter/" + ADAPTER_FILE
    )
    assert parts.order().kind is OrderKind.PROBE


async def test_rollouts_of_the_first_step_are_sampled_while_the_canary_waits_for_the_learner(
    tmp_path,
):
    parts = Parts(tmp_path)

    start = parts.controller.join(FRESH)
    await parts.advance()
    requests = len(parts.served.requests)
    parts.controller.report_canary(start.attempt, EXACT)

    assert requests > 0
    assert parts.controller.state is GrpoState.TRAINING


async def test_every_step_commits_publishes_and_writes_one_line(tmp_path):
    parts = Parts(tmp_path)

    start = await parts.to_training()
    await parts.step(start)
    await parts.step(start)

    assert parts.controller.state is GrpoState.FINISHED
    assert [record.version.version for record in parts.served.published] == [0, 1, 2]
    lines = parts.lines()
    assert [(x["step"], x["policy_version"], x["policy_version_out"]) for x in lines] == [
        (1, 0, 1),
        (2, 1, 2),
    ]
    wanted = {
        "reward/mean",
        "reward/std",
        "reward/cls_mean",
        "reward/att_mean",
        "reward/excess",
        "rollout/parse_failure_rate",
        "rollout/dead_groups",
        "rollout/response_tokens",
        "canary/k3",
        "canary/max_abs",
        "canary/mean_abs",
        "time/rollout_s",
        "time/sync_s",
        "loss",
    }
    assert wanted <= lines[0].keys()


async def test_rollouts_carry_the_version_that_was_just_published(tmp_path):
    parts = Parts(tmp_path)

    start = await parts.to_training()
    first = {request.least.version for request in parts.served.requests}
    await parts.step(start)

    assert first == {0}
    assert {request.least.version for request in parts.served.requests} == {0, 1}


async def test_a_learner_that_is_lost_before_its_commit_gets_the_same_batch_again(tmp_path):
    parts = Parts(tmp_path)
    await parts.to_training()
    before = parts.controller.order(0)
    requests = len(parts.served.requests)

    again = parts.controller.join()

    assert again.step == 0
    assert again.attempt == 2
    assert parts.controller.order(0) == before
    assert len(parts.served.requests) == requests


async def test_a_learner_that_is_lost_right_after_its_commit_does_not_repeat_the_step(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    parts.controller.report_step(start.attempt, policy(1), {"loss": 0.5})

    again = parts.controller.join()
    await parts.advance()
    parts.controller.report_canary(again.attempt, EXACT)
    await parts.advance()

    assert again.step == 1
    assert known(parts.order().batch).step == 2


async def test_a_late_report_of_a_replaced_learner_is_ignored(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    parts.controller.join()

    parts.controller.report_step(start.attempt, policy(1), {})

    assert parts.controller.steps_done == 0
    assert parts.controller.state is GrpoState.TRAINING


async def test_a_controller_that_starts_on_a_run_folder_goes_on_behind_its_last_commit(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    await parts.step(start)

    resumed = Parts(tmp_path)
    start = resumed.controller.join()
    await resumed.advance()
    resumed.controller.report_canary(start.attempt, EXACT)
    await resumed.step(start)

    assert start.step == 1
    assert resumed.served.published[0].version.version == 1
    assert resumed.controller.state is GrpoState.FINISHED
    assert [line["step"] for line in resumed.lines()] == [1, 2]


async def test_a_line_that_was_lost_between_commit_and_sync_is_written_on_resume(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    parts.controller.report_step(start.attempt, policy(1), {"loss": 0.5})

    resumed = Parts(tmp_path)
    start = resumed.controller.join()
    await resumed.advance()
    resumed.controller.report_canary(start.attempt, EXACT)

    assert [(line["step"], line["loss"]) for line in resumed.lines()] == [(1, 0.5)]


async def test_a_canary_that_disagrees_stops_the_stage(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    parts.controller.report_step(start.attempt, policy(1), {"loss": 0.5})
    await parts.advance()

    parts.controller.report_canary(start.attempt, tuple(value - 1.0 for value in EXACT))

    assert parts.controller.state is GrpoState.FAILED
    assert parts.order().kind is OrderKind.STOP
    assert "at most 0.250, got 1.000" in str(parts.controller.failure)


async def test_a_generator_that_serves_something_else_from_the_start_stops_the_stage(tmp_path):
    parts = Parts(tmp_path)
    start = parts.controller.join(FRESH)
    await parts.advance()

    parts.controller.report_canary(start.attempt, tuple(value - 0.5 for value in EXACT))

    assert parts.controller.state is GrpoState.FAILED
    assert "version 0" in str(parts.controller.failure)


async def test_a_canary_may_be_off_by_three_times_what_it_was_at_version_0(tmp_path):
    parts = Parts(tmp_path, grpo=GrpoSection(steps=2, group_size=4, canary_tolerance=1.0))
    start = parts.controller.join(FRESH)
    await parts.advance()
    parts.controller.report_canary(start.attempt, tuple(value - 0.5 for value in EXACT))
    await parts.advance()

    parts.controller.report_step(start.attempt, policy(1), {"loss": 0.5})
    await parts.advance()
    parts.controller.report_canary(start.attempt, tuple(value - 1.4 for value in EXACT))

    assert parts.controller.failure is None
    (line,) = parts.lines()
    assert line["canary/limit"] == pytest.approx(1.5)
    assert line["canary/mean_abs"] == line["canary/max_abs"] == pytest.approx(1.4)
    assert line["canary/k3"] == pytest.approx(math.exp(-1.4) - 1 + 1.4)


class MovingPolicy(ScriptedPolicy):
    """Serves a share of what its learner has trained."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    async def score(self, prompt_token_ids, response_token_ids, least):
        moved = self.logprob + self.share * CHANGE * least.version
        return [Scored(replica="r", version=least, logprobs=(moved,) * len(response_token_ids))]


CHANGE = 0.2
TRAINED = tuple(value + CHANGE for value in EXACT)


async def after_one_step(folder, share, **limits):
    section = GrpoSection(steps=2, group_size=4, canary_tolerance=1.0, **limits)
    parts = Parts(folder, served=MovingPolicy(share), grpo=section)
    start = await parts.to_training()
    parts.controller.report_step(start.attempt, policy(1), {"loss": 0.5})
    await parts.advance()
    parts.controller.report_canary(start.attempt, TRAINED)
    return parts


async def test_every_sync_says_which_share_of_the_trained_change_is_served(tmp_path, caplog):
    parts = await after_one_step(tmp_path, share=0.95)

    (line,) = parts.lines()
    assert line["sync/served_share"] == pytest.approx(0.95)
    assert line["sync/trained_change"] == pytest.approx(CHANGE)
    assert line["sync/change_mean_abs"] == pytest.approx(0.05 * CHANGE)
    assert "served share" not in caplog.text


async def test_a_share_that_is_off_is_warned_about(tmp_path, caplog):
    parts = await after_one_step(tmp_path, share=0.85)

    assert parts.controller.failure is None
    assert "served share of the trained change is 0.85 policy=version 1" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.4, 0.67, 1.5])
async def test_a_share_that_is_far_off_stops_the_stage(tmp_path, share):
    parts = await after_one_step(tmp_path, share)

    assert parts.controller.state is GrpoState.FAILED
    assert f"within 0.3 of 1, got {share:.2f} for version 1" in str(parts.controller.failure)
    assert "grpo.served_share_tolerance" in str(parts.controller.failure)


async def test_limits_of_the_share_are_settings(tmp_path, caplog):
    parts = await after_one_step(
        tmp_path, share=0.4, served_share_warning=0.7, served_share_tolerance=0.7
    )

    assert parts.controller.failure is None
    assert "served share" not in caplog.text


async def test_a_resumed_stage_compares_with_version_0_again(tmp_path):
    parts = await after_one_step(tmp_path, share=1.0)

    resumed = Parts(tmp_path, served=MovingPolicy(0.4), grpo=parts.inputs.grpo)
    start = resumed.controller.join()
    await resumed.advance()
    resumed.controller.report_canary(start.attempt, TRAINED)

    assert "got 0.40 for version 1" in str(resumed.controller.failure)


async def test_the_canary_is_kept_for_who_serves_the_policy_later(tmp_path):
    parts = await after_one_step(tmp_path, share=1.0)

    record = known(CanaryRecord.read(parts.inputs.out_dir))

    assert record.canary == parts.inputs.canary
    assert record.learner_before == record.served_before[0] == EXACT
    assert record.learner == {
        adapter_checksum(b"fresh"): EXACT,
        adapter_checksum(b"step 1"): TRAINED,
    }


async def test_a_folder_of_an_earlier_release_goes_on_without_a_share(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    (parts.inputs.out_dir / "canary.json").write_text('{"mean_abs": 0.0}\n')
    await parts.step(start)

    assert parts.controller.failure is None
    assert "sync/served_share" not in parts.lines()[0]


async def test_a_generator_that_gives_up_fails_the_stage_with_its_own_error(tmp_path):
    class Silent(ScriptedPolicy):
        async def publish(self, record):
            raise ServiceError("no answer")

    parts = Parts(tmp_path, served=Silent())
    parts.controller.join(FRESH)
    await parts.advance()

    assert parts.controller.state is GrpoState.FAILED
    assert isinstance(parts.controller.failure, ServiceError)


async def test_dapo_replaces_dead_groups_and_says_how_many_there_were(tmp_path):
    def always_half(call):
        names = "pH, Glucose, Weight, Height, Temperature\n"
        words = {"choice": "F", "features": names, "probability": "0.50\n"}
        return words.get(call.kind, "q\n")

    section = GrpoSection(steps=1, group_size=2, dynamic_sampling=True, max_refills=2)
    served = ScriptedPolicy()
    served.script = always_half
    parts = Parts(tmp_path, served=served, grpo=section)

    start = await parts.to_training()
    await parts.step(start)

    line = parts.lines()[0]
    assert (line["rollout/dead_groups_drawn"], line["rollout/refills"]) == (6, 2)
    assert line["rollout/dead_groups"] == 2


async def test_the_batch_has_whole_groups_in_every_update_and_masks_the_callers_tokens(tmp_path):
    parts = Parts(tmp_path)
    await parts.to_training()

    batch = known(parts.order().batch)

    assert sorted(i for update in batch.updates for i in update) == [0, 1]
    assert len(batch.updates) == 2
    for group, sequences in zip(batch.groups, batch.sequences, strict=True):
        for trained, sequence in zip(group.trained, sequences, strict=True):
            assert not all(trained)
            assert sum(trained) == len(sequence.salient) == len(sequence.generator_logprobs)
            assert sequence.constrained == (True,) * sum(trained)  # the guided format
            assert any(sequence.salient)


async def test_rollouts_are_kept_for_reading_once_a_step(tmp_path):
    parts = Parts(tmp_path)
    start = await parts.to_training()
    await parts.step(start)

    text = (parts.inputs.out_dir / "rollouts.jsonl").read_text()
    samples = [json.loads(line) for line in text.splitlines()]

    assert {sample["step"] for sample in samples} == {1}
    assert {"patient_id", "reward", "text"} <= samples[0].keys()


def test_batches_are_balanced_and_patients_unknown_to_stage1_come_first():
    section = GrpoSection(patients_per_step=2)
    stream = PatientStream(grpo_patients(8, in_stage1=(0, 1, 2, 3)), section)

    drawn = [stream.draw(step) for step in (1, 2, 3, 4)]

    assert all(sorted(p.context.label for p in batch) == [0, 1] for batch in drawn)
    assert {p.in_stage1 for batch in drawn[:2] for p in batch} == {False}
    assert len({p.patient_id for batch in drawn for p in batch}) == 8


def test_the_patients_of_a_step_depend_on_seed_and_step_alone():
    patients = grpo_patients(8)
    section = GrpoSection(patients_per_step=2)

    again = PatientStream(tuple(reversed(patients)), section).draw(3)

    assert again == PatientStream(patients, section).draw(3)
    other = GrpoSection(patients_per_step=2, seed=1)
    draws = [PatientStream(patients, other).draw(step) for step in range(1, 5)]
    assert draws != [PatientStream(patients, section).draw(step) for step in range(1, 5)]


def test_no_patient_is_twice_in_a_batch_where_a_pass_ends_inside_it():
    section = GrpoSection(patients_per_step=4, balance=False)
    stream = PatientStream(grpo_patients(6), section)

    for step in range(1, 8):
        assert len({p.patient_id for p in stream.draw(step)}) == 4


def test_too_few_patients_of_a_class_are_refused_with_the_setting_to_change():
    patients = [p for p in grpo_patients(6) if p.context.label == 0]

    with pytest.raises(DataError, match=r"patients_per_step.*balance=false"):
        PatientStream(patients, GrpoSection(patients_per_step=2))


def test_a_truncated_rollout_is_a_format_failure():
    text = "<Important Features>\npH\n</Important Features>\n<Final answer>\n0.90\n</Final answer>"
    rollouts = [rollout(text), rollout(text, truncated=True)]

    group = score_group(grpo_patients(2)[1], rollouts, RewardSection(), MATCHER, GrpoSection())

    assert [each.reward.format_failure for each in group.rollouts] == [None, "truncated"]
    assert group.rewards[1] == pytest.approx(0.6 * math.log(0.01))


def test_a_reward_that_is_not_finite_names_the_patient():
    group = score_group(
        grpo_patients(1)[0], [rollout(), rollout()], RewardSection(), MATCHER, GrpoSection()
    )
    broken = replace(group.rollouts[0], reward=replace(group.rollouts[0].reward, total=math.nan))
    group = replace(group, rollouts=(broken, group.rollouts[1]))

    with pytest.raises(TrainingError, match="patient p0 rollout 0=nan"):
        training_batch(1, [group], GrpoSection(), CharTokenizer(), MATCHER)


def test_credit_by_name_reaches_the_tokens_of_each_name():
    section = GrpoSection(credit="by_name")
    tokenizer = CharTokenizer()
    patient = grpo_patients(1)[0]
    patient = replace(
        patient, context=replace(patient.context, salient_features=frozenset({"pH", "Glucose"}))
    )
    opening, closing = "<Important Features>\n", "\n</Important Features>\n<Final answer>\n0.50"
    rollouts = []
    for names in ("pH, Weight", "Height, Glucose"):
        text = opening + names + closing
        token_ids = tuple(tokenizer.encode(text))
        known = rollout(text, written=(True,) * len(token_ids))
        rollouts.append(replace(known, token_ids=token_ids))

    group = score_group(patient, rollouts, RewardSection(), MATCHER, section)
    batch = training_batch(1, [group], section, tokenizer, MATCHER)

    first, second = (each.advantages for each in batch.sequences[0])
    at = len(opening)
    assert first[at] == pytest.approx(1)  # pH is right, Height is not
    assert first[at + len("pH, ")] == pytest.approx(-1)
    assert second[at] == pytest.approx(-1)
    assert second[at + len("Height, ")] == pytest.approx(1)
    assert first[0] == second[0] == 0  # both have the same R


RISK_OPENING = "<Important Features>\npH\n</Important Features>\n<Final answer>\n"
RISK_CLOSING = "</Final answer>"


def risky(number, **changes):
    """A guided answer of characters, in which the names and the number are the model's."""
    text = f"{RISK_OPENING}{number}{RISK_CLOSING}"
    start, stop = len(RISK_OPENING), len(text) - len(RISK_CLOSING)
    names = range(len("<Important Features>\n"), len("<Important Features>\npH\n"))
    written = tuple(i in names or start <= i < stop for i in range(len(text)))
    pattern = PatternSpan(start=start, stop=stop, regex=PROBABILITY_REGEX)
    return replace(
        rollout(text, written=written),
        token_ids=tuple(map(ord, text)),
        patterns=(pattern,),
        **changes,
    )


def test_an_exact_risk_takes_the_place_of_the_number_that_was_sampled():
    section = GrpoSection(credit="exact_risk")
    patient = grpo_patients(2)[1]
    rollouts = [risky("0.90\n"), risky("0.20\n"), risky("0.60\n", truncated=True), risky("")]

    group = score_group(patient, rollouts, RewardSection(), MATCHER, section)
    batch = training_batch(1, [group], section, CharTokenizer(), MATCHER)

    first, second, cut, unread = batch.sequences[0]
    assert cut.risk is unread.risk is None
    for each in (first, second):
        assert known(each.risk).start == len(RISK_OPENING)
        assert known(each.risk).rewards[90] == group.rollouts[0].reward.cls
        assert known(each.risk).rewards[20] == group.rollouts[1].reward.cls
        assert each.advantages[3:] == (0.0,) * 5
    assert first.advantages[:3] == pytest.approx([advantage_of(group, 0)] * 3)
    cls = torch.tensor([each.reward.cls for each in group.rollouts], dtype=torch.float64)
    assert known(first.risk).scale == pytest.approx(float(cls.std(correction=0)))
    # What could not be read is trained as it was sampled, number and all.
    assert cut.advantages[3] == pytest.approx(
        float((cls[2] - cls.mean()) / known(first.risk).scale)
    )


def advantage_of(group, number):
    rewards = group.rewards
    return float((rewards[number] - rewards.mean()) / rewards.std(correction=0))


@pytest.mark.parametrize("credit", ["trajectory", "reward_to_go", "by_name"])
def test_no_other_credit_knows_of_numbers_that_were_not_sampled(credit):
    section = GrpoSection(credit=credit)
    rollouts = [risky("0.90\n"), risky("0.20\n")]

    group = score_group(grpo_patients(2)[1], rollouts, RewardSection(), MATCHER, section)
    batch = training_batch(1, [group], section, CharTokenizer(), MATCHER)

    assert all(each.risk is None and each.advantages[-1] for each in batch.sequences[0])


def unread_groups(patients, section):
    """Two rollouts of each patient, none of them readable."""
    return [
        score_group(patient, [rollout(), rollout()], RewardSection(), MATCHER, section)
        for patient in patients
    ]


def test_every_update_has_its_share_of_positives():
    section = GrpoSection(patients_per_step=16, updates_per_step=4)
    patients = grpo_patients(16)
    groups = unread_groups(patients, section)

    steps = [
        training_batch(step, groups, section, CharTokenizer(), MATCHER).updates
        for step in range(1, 9)
    ]

    for updates in steps:
        assert sorted(i for update in updates for i in update) == list(range(16))
        for update in updates:
            assert sum(patients[i].context.label for i in update) == 2
    assert len(set(steps)) == 8  # shuffled anew in every step


def test_no_class_has_the_last_update_of_every_step():
    section = GrpoSection(patients_per_step=2, updates_per_step=2)
    patients = grpo_patients(2)
    groups = unread_groups(patients, section)

    last = {
        training_batch(step, groups, section, CharTokenizer(), MATCHER).updates[-1]
        for step in range(1, 17)
    }

    assert last == {(0,), (1,)}
