import pytest
import torch

from ehr.errors import TrainingError
from tests.learner_fakes import LEARNER, tiny_model, token_groups
from tests.typed import known
from training.learner.packing import (
    Branches,
    BranchSpan,
    TokenGroup,
    deal,
    filler_row,
    pack,
)
from training.learner.policy_model import load_policy_model


def group(prompt, *responses, trained=None):
    return TokenGroup(
        patient_id="p",
        prompt=prompt,
        responses=responses,
        trained=trained or tuple((True,) * len(r) for r in responses),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def model(path):
    return loaded(path, "float32")


def loaded(path, dtype):
    policy = load_policy_model(path, LEARNER, dtype=dtype, seed=3)
    torch.manual_seed(1)
    for name, weight in policy.peft_model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return policy


def packed(model, groups, budget):
    """Log-probabilities and entropies by sequence, and the gradient of a weighted sum."""
    model.zero_grad()
    found = {}
    for row in pack(groups, budget):
        logprobs, entropies, _ = model(row, with_entropy=True)
        parts = zip(
            row.sequences, logprobs.split(row.lengths), entropies.split(row.lengths), strict=True
        )
        for sequence, logprob, entropy in parts:
            found[sequence] = (logprob.detach(), entropy)
            ((sequence % 3 - 1.5) * logprob.sum()).backward(retain_graph=True)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    values = [torch.cat([found[s][k] for s in sorted(found)]) for k in (0, 1)]
    return (*values, gradient)


def dense(model, groups):
    """The same with every response as a sequence of its own, in transformers' own attention."""
    model.zero_grad()
    causal = model.peft_model.get_base_model()
    implementation = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa")
    logprobs, entropies = [], []
    sequences = [
        (g.prompt, r, t) for g in groups for r, t in zip(g.responses, g.trained, strict=True)
    ]
    for number, (prompt, response, trained) in enumerate(sequences):
        logits = causal(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        every = logits.log_softmax(-1)[torch.tensor(trained)]
        wanted = torch.tensor(response)[torch.tensor(trained)]
        logprob = every.gather(-1, wanted[:, None])[:, 0]
        ((number % 3 - 1.5) * logprob.sum()).backward()
        logprobs.append(logprob.detach())
        entropies.append(-(every.exp() * every).sum(-1).detach())
    causal.set_attn_implementation(implementation)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return torch.cat(logprobs), torch.cat(entropies), gradient


@pytest.mark.parametrize("budget", [4096, 60])
def test_packed_rows_equal_separate_sequences_in_values_and_gradients(model, budget):
    groups = token_groups(3, 4)

    expected = dense(model, groups)
    found = packed(model, groups, budget)

    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_bf16_rows_are_about_as_near_to_fp32_as_bf16_separate_sequences_are(path):
    groups = token_groups(3, 4, prompt=90, response=30)
    low, full = loaded(path, "bfloat16"), loaded(path, "float32")
    for weight in full.peft_model.parameters():
        if not weight.requires_grad:
            weight.data = weight.bfloat16().float()
    exact = dense(full, groups)

    ours, separate = packed(low, groups, 4096), dense(low, groups)

    for mine, theirs, truth in zip(ours, separate, exact, strict=True):
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm()


def test_a_group_stands_once_with_its_prompt_and_positions_restart_for_each_response():
    (row,) = pack([group((1, 2, 3), (4, 5), (6,))], 100)

    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert row.targets.tolist() == [4, 5, 6]
    assert row.predictors.tolist() == [2, 3, 2]
    assert row.sequences == (0, 1)


def test_branches_stand_behind_the_responses_at_the_position_of_their_place():
    branched = TokenGroup(
        patient_id="p",
        prompt=(1, 2, 3),
        responses=((4, 5, 6), (7,), (8, 9)),
        trained=((True,) * 3, (True,), (True,) * 2),
        branches=(Branches(2, (60, 61), (70,)), None, Branches(1, (60, 61), (70,))),
    )

    (row,) = pack([group((0,), (0,)), branched], 100)

    assert row.token_ids.tolist()[:13] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 60, 61, 60, 61]
    assert row.position_ids.tolist()[:13] == [0, 1, 2, 3, 4, 5, 3, 3, 4, 5, 5, 4, 4]
    assert row.spans[0].branches == (
        BranchSpan((9, 11), (3, 5)),
        BranchSpan((11, 13), (7, 8)),
    )
    choices = known(row.choices)
    assert choices.responses == (0, 2)
    assert choices.predictors.tolist() == [[4, 9, 10], [7, 11, 12]]
    assert choices.tokens.tolist() == [60, 61]
    assert choices.whole.tolist() == [70]
    assert row.targets.tolist() == [4, 5, 6, 7, 8, 9, 0]


def test_branches_count_in_the_budget_of_a_row():
    branched = TokenGroup(
        patient_id="p",
        prompt=(1,) * 10,
        responses=((2,) * 6, (3,) * 6),
        trained=((True,) * 6, (True,) * 6),
        branches=(Branches(2, (60, 61)),) * 2,
    )

    rows = pack([branched], 25)

    assert [row.num_tokens for row in rows] == [18, 18]
    with pytest.raises(TrainingError, match="a response of 8"):
        pack([branched], 17)


def test_tokens_of_the_caller_are_read_and_never_predicted():
    (row,) = pack([group((1, 2), (3, 4, 5), trained=((True, False, True),))], 100)

    assert row.num_tokens == 5
    assert row.targets.tolist() == [3, 5]
    assert row.predictors.tolist() == [1, 3]


def test_a_group_over_the_budget_is_split_and_repeats_its_prompt():
    rows = pack([group((1,) * 10, (2,) * 6, (3,) * 6, (4,) * 6)], 22)

    assert [row.num_tokens for row in rows] == [22, 16]
    assert [row.sequences for row in rows] == [(0, 1), (2,)]


def test_small_groups_share_a_row():
    (row,) = pack([group((1, 2), (3,)), group((4,), (5, 6))], 10)

    assert row.num_tokens == 6
    assert len(row.spans) == 2


def test_every_sequence_is_packed_exactly_once():
    groups = token_groups(5, 4)

    rows = pack(groups, 64)

    assert sorted(s for row in rows for s in row.sequences) == list(range(20))
    assert all(row.num_tokens <= 64 for row in rows)


def test_an_empty_response_keeps_its_number_and_is_left_out():
    (row,) = pack([group((1,), (2,), (), (3,))], 10)

    assert row.sequences == (0, 2)


def test_a_response_that_no_row_can_hold_names_the_patient_and_the_setting():
    with pytest.raises(TrainingError, match=r"max_row_tokens=10.*'p'.*raise"):
        pack([group((1,) * 8, (2,) * 3)], 10)


def test_padded_lines_hold_each_sequence_and_the_mask_tells_its_end():
    (row,) = pack([group((1,), (2, 3), (4,))], 10)

    assert row.padded(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert row.mask.tolist() == [[True, True], [True, False]]


def test_ranks_get_equally_many_rows_and_fillers_belong_to_no_sequence():
    rows = pack(token_groups(3, 2), 40)

    shares = deal(rows, 2)

    assert len({len(share) for share in shares}) == 1
    dealt = sorted(s for share in shares for row in share for s in row.sequences)
    assert dealt == list(range(6))


def test_a_filler_row_runs_and_adds_no_gradient(model):
    model.zero_grad()

    (model(filler_row())[0].sum() * 0).backward()

    assert all(not p.grad.any() for p in model.parameters())


def test_the_attention_refuses_calls_that_do_not_say_how_a_row_is_packed(model):
    with pytest.raises(TrainingError, match="packed rows only"):
        model.peft_model(torch.tensor([[1, 2, 3]]))
