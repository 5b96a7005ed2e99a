from actors.rollouts import Rollout
from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from services.types import PolicyVersion
from tests.learner_fakes import grpo_patients
from training.config.grpo import GrpoSection
from training.grpo.batch import score_group
from training.grpo.rollout_metrics import rollout_samples

MATCHER = FeatureMatcher(BENCHMARK_17)
VERSION = PolicyVersion(lineage="grpo", version=4)


def rollout(patient_id, index):
    return Rollout(
        patient_id=patient_id,
        prompt_token_ids=(1,),
        token_ids=(65,),
        model_written=(True,),
        generator_logprobs=(-1.0,),
        constrained=(False,),
        text=f"<Important Features>\npH\n</Important Features>\n<Final answer>\n0.{index}1\n"
        "</Final answer>",
        truncated=False,
        oldest_policy=VERSION,
        newest_policy=VERSION,
        num_requests=1,
        num_cut_lines=0,
    )


def scored(patient, size=8):
    rollouts = [rollout(patient.patient_id, index) for index in range(size)]
    return score_group(patient, rollouts, RewardSection(), MATCHER, GrpoSection())


GROUPS = [scored(patient) for patient in grpo_patients(6)]


def places(step):
    return [(each["patient_id"], each["rollout"]) for each in rollout_samples(step, GROUPS)]


def test_the_sample_of_a_step_is_always_the_same_and_every_step_has_another():
    assert places(1) == places(1)
    assert len({tuple(places(step)) for step in range(1, 6)}) == 5


def test_over_the_steps_every_group_and_every_place_in_it_is_seen():
    seen = [place for step in range(1, 61) for place in places(step)]

    assert {patient for patient, _ in seen} == {f"p{i}" for i in range(6)}
    assert {index for _, index in seen} == set(range(8))


def test_a_sample_says_what_its_reward_is_made_of():
    (sample,) = rollout_samples(2, [scored(grpo_patients(2)[1], size=1)])

    assert (sample["step"], sample["policy_version"]) == (2, 4)
    assert (sample["probability"], sample["label"], sample["features"]) == (0.01, 1, ["pH"])
    assert sample["reward"] == 0.6 * sample["reward_cls"] + 0.4 * sample["reward_att"]
    assert sample["reward_att"] == 0.2
    assert sample["format_failure"] is None


def test_fewer_rollouts_than_asked_for_are_all_there():
    assert len(rollout_samples(1, [scored(grpo_patients(1)[0], size=3)])) == 3
