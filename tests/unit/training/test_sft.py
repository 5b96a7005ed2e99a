import pytest
import torch

from ehr.errors import TrainingError
from training.config.sft import SftSection
from training.learner.packing import TokenGroup, filler_row, pack
from training.sft.held_out import hold_out
from training.sft.inputs import SftExample
from training.sft.loss import sft_loss
from training.sft.steps import learning_rate, plan_steps


def example(patient_id, num=1):
    return SftExample(
        patient_id=patient_id,
        prompt_token_ids=(1, 2),
        responses=tuple((3, 4 + i) for i in range(num)),
        model_written=((True, True),) * num,
    )


def two_lengths():
    group = TokenGroup(
        patient_id="p",
        prompt=(1,),
        responses=((2, 3), (4,)),
        trained=((True, True), (True,)),
    )
    return pack([group], 100)[0]


def test_every_epoch_has_every_trajectory_once_in_steps_of_the_batch_size():
    examples = [example(f"p{i}", num=2) for i in range(3)]

    steps = plan_steps(examples, SftSection(epochs=2, batch_size=4))

    assert [step.num_trajectories for step in steps] == [4, 2, 4, 2]
    assert [step.ends_epoch for step in steps] == [False, True, False, True]
    for epoch in (1, 2):
        groups = [g for step in steps if step.epoch == epoch for g in step.groups]
        seen = sorted((g.patient_id, response) for g in groups for response in g.responses)
        assert seen == sorted((e.patient_id, r) for e in examples for r in e.responses)


def test_trajectories_of_a_patient_share_one_prompt_inside_a_step():
    (step,) = plan_steps([example("a", num=3), example("b")], SftSection(epochs=1, batch_size=4))

    assert sorted(len(group.responses) for group in step.groups) == [1, 3]


def test_the_plan_is_a_function_of_its_seed():
    examples = [example(f"p{i}") for i in range(8)]
    section = SftSection(epochs=1, batch_size=2)

    assert plan_steps(examples, section) == plan_steps(examples, section)
    assert plan_steps(examples, section) != plan_steps(examples, SftSection(epochs=1, seed=1))


def test_the_learning_rate_rises_to_its_peak_and_falls_along_a_cosine():
    section = SftSection(learning_rate=1.0, warmup_fraction=0.2)

    rates = [learning_rate(step, 10, section) for step in range(1, 11)]

    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1


def test_the_loss_is_the_mean_over_trajectories_of_their_token_means():
    row = two_lengths()
    logprobs = torch.tensor([-1.0, -3.0, -5.0])

    assert sft_loss(logprobs, row, SftSection(), 2).item() == pytest.approx((2.0 + 5.0) / 2)


def test_sum_is_equation_8_as_it_stands():
    row = two_lengths()
    logprobs = torch.tensor([-1.0, -3.0, -5.0])

    assert sft_loss(logprobs, row, SftSection(reduction="sum"), 2).item() == 9.0


def test_a_filler_row_weighs_nothing():
    assert sft_loss(torch.tensor([-7.0]), filler_row(), SftSection(), 2).item() == 0


def test_no_trajectory_at_all_is_refused_with_what_to_change():
    with pytest.raises(TrainingError, match="search more patients"):
        plan_steps([], SftSection())


def test_held_out_patients_are_a_seeded_share_and_nobody_is_on_both_sides():
    examples = [example(f"p{i}", num=2) for i in range(40)] + [example("p3")]

    trained, held_out = hold_out(examples, SftSection(validation_share=0.1))

    patients = {each.patient_id for each in held_out}
    assert len(patients) == 4
    assert not patients & {each.patient_id for each in trained}
    assert len(trained) + len(held_out) == 41
    assert hold_out(examples, SftSection(validation_share=0.1)) == (trained, held_out)
    assert hold_out(examples, SftSection(validation_share=0.1, seed=1))[1] != held_out


@pytest.mark.parametrize(("num", "share"), [(40, 0.0), (40, 0.09), (6, 0.5)])
def test_fewer_than_four_patients_are_not_held_out(num, share):
    examples = tuple(example(f"p{i}") for i in range(num))

    assert hold_out(examples, SftSection(validation_share=share)) == (examples, ())
