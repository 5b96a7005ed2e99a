"""Learning from the risk exactly: a tiny model, all hundred numbers, and none of the packing."""

import math
from dataclasses import replace

import pytest
import torch

from actors.rollouts import PatternSpan
from ehr.config import RewardSection
from ehr.language.guided_format import PROBABILITY_REGEX
from ehr.rewards import classification_reward
from tests.learner_fakes import LEARNER, tiny_model
from tests.typed import known, untyped
from training.learner.allowed_tokens import AllowedTokens
from training.learner.packing import TokenGroup, pack
from training.learner.policy_model import load_policy_model
from training.objective.logprob import FORBIDDEN
from training.objective.loss import LossDenominators, SampledTokens, policy_loss
from training.objective.risk import KnownRisks, expected_reward, expected_surrogate

PROMPTS = ("Patient 0: the risk?\n", "Patient 1, who is older: what is it?\n")
OPENINGS = (("pH, Glucose\n", "Height, pH, Weight\n", "Age\n"), ("pH\n", "Weight, Glucose\n"))
CLOSING = "</Final answer>"
LABELS = (0, 1)
SCALE = 0.7
REWARDS = [
    [classification_reward(n / 100, label, RewardSection()) for n in range(100)] for label in LABELS
]
CLIPS = (0.2, 0.3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def tokens(path):
    return AllowedTokens(path)


def policy(path, size=0.5):
    """A policy whose digits are far from equally probable."""
    model = load_policy_model(path, LEARNER, dtype="float32", seed=3)
    untyped(model.peft_model).get_base_model().get_output_embeddings().weight.data *= 10
    torch.manual_seed(1)
    for name, weight in model.peft_model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, size)
    return model


def moved(model, size):
    """The policy after a random update."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn_like(weight)
    return model


def group(patient, numbers, tokens, *, exact=True):
    """A patient's responses, with a number each; only the numbers are trained."""
    responses, trained, branches, allowed = [], [], [], []
    for opening, number in zip(OPENINGS[patient], numbers, strict=False):
        ids = tuple(map(ord, f"{opening}0.{number:02d}\n{CLOSING}"))
        start, stop = len(opening), len(ids) - len(CLOSING)
        written = tuple(start <= i < stop for i in range(len(ids)))
        span = PatternSpan(start=start, stop=stop, regex=PROBABILITY_REGEX)
        responses.append(ids)
        trained.append(written)
        branches.append(tokens.number.branches(ids, start) if exact else None)
        allowed.append(tokens.of(ids, written, (span,)))
    return TokenGroup(
        patient_id=f"p{patient}",
        prompt=tuple(map(ord, PROMPTS[patient])),
        responses=tuple(responses),
        trained=tuple(trained),
        allowed=tuple(allowed),
        branches=tuple(branches),
    )


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def risks_of(logp, labels):
    """The rewards of responses, with log-probabilities as pi_old's."""
    return KnownRisks(
        old_logp=logp.detach(),
        reward=torch.tensor([REWARDS[label] for label in labels]),
        scale=torch.full((len(labels),), SCALE),
    )


def exact_loss(row, model, old, labels):
    """Loss of a row's numbers, as `training.grpo.updates` puts it together."""
    logp, risks = model(row).choices, risks_of(old(row).choices, labels)
    high = torch.full((len(labels),), CLIPS[1])
    return -expected_surrogate(logp, risks, CLIPS[0], high).surrogate.sum()


def sampled_loss(number, model, old, tokens):
    """Loss of one response whose sampled number is `number`, with the exact baseline."""
    (row,) = pack([group(1, [number], tokens, exact=False)], 4096)
    (branched,) = pack([group(1, [number], tokens)], 4096)
    chance = numbers_of(old(branched).choices[0].detach()).exp()
    baseline = float((chance * torch.tensor(REWARDS[1])).sum())
    logp, old_logp = row.padded(model(row)[0]), row.padded(old(row)[0].detach())
    fixed = SampledTokens(
        old_logp=old_logp,
        advantage=torch.tensor([(REWARDS[1][number] - baseline) / SCALE]),
        mask=row.mask,
    )
    high = torch.tensor([CLIPS[1]])
    counts = LossDenominators(num_sequences=1, num_tokens=5)
    return policy_loss(logp, fixed, CLIPS[0], high, "sum", counts).loss


def numbers_of(choices):
    """Log-probability of each of the hundred numbers."""
    return (choices[0][:, None] + choices[1:]).flatten()


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["at ratio one", "beyond the clip"])
def case(request, path, tokens):
    """Policy and pi_old; gradient of the exact loss, and the sampled gradients of all numbers."""
    old, model = policy(path), moved(policy(path), request.param)
    (row,) = pack([group(1, [55], tokens)], 4096)
    exact = gradient(model, exact_loss(row, model, old, [1]))
    sampled = torch.stack(
        [gradient(model, sampled_loss(n, model, old, tokens)) for n in range(100)]
    )
    chance = numbers_of(old(row).choices[0].detach()).exp()
    ratios = (model(row).choices - old(row).choices).detach().exp()
    beyond = (ratios > 1 + CLIPS[1]).any() and (ratios < 1 - CLIPS[0]).any()
    assert (request.param > 0) == bool(beyond)
    return exact, sampled, chance


def test_the_exact_gradient_is_the_mean_over_all_numbers(case):
    exact, sampled, chance = case

    torch.testing.assert_close(chance @ sampled, exact, atol=1e-5, rtol=1e-3)
    assert exact.norm() > 0.05


def test_the_exact_gradient_is_the_mean_over_sampled_numbers_within_its_standard_error(case):
    exact, sampled, chance = case
    generator = torch.Generator().manual_seed(5)
    drawn = torch.multinomial(chance, 4000, replacement=True, generator=generator)
    direction = torch.randn(exact.shape, generator=generator)

    projected = (sampled @ direction)[drawn]

    error = projected.std() / math.sqrt(len(drawn))
    assert abs(projected.mean() - exact @ direction) < 3 * error
    # One number alone is far from it.
    assert projected.std() > 3 * abs(exact @ direction - projected.mean())


def test_given_the_prefix_the_number_that_was_sampled_changes_nothing(path, tokens):
    old, model = policy(path), moved(policy(path), 0.1)
    found = []
    for number in (0, 37, 99):
        (row,) = pack([group(1, [number], tokens)], 4096)
        found.append(gradient(model, exact_loss(row, model, old, [1])))

    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[2], found[0], atol=1e-6, rtol=1e-5)


def mean_reward(model, patient):
    """E[R_cls | prefix] of a patient's first opening, by transformers' own attention, float64."""
    causal = model.peft_model.get_base_model()
    implementation = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa")
    digits = list(map(ord, "0123456789"))
    prefix = list(map(ord, PROMPTS[patient] + OPENINGS[patient][0] + "0."))
    with torch.no_grad():

        def among_digits(ids):
            return causal(torch.tensor([ids])).logits[0, -1, digits].double().softmax(-1)

        tens = among_digits(prefix)
        units = torch.stack([among_digits([*prefix, digit]) for digit in digits])
    causal.set_attn_implementation(implementation)
    rewards = torch.tensor(REWARDS[LABELS[patient]], dtype=torch.float64)
    return float((tens[:, None] * units).flatten() @ rewards)


def test_the_expected_reward_is_that_of_the_models_own_logits(path, tokens):
    model = policy(path)
    for patient in (0, 1):
        (row,) = pack([group(patient, [12], tokens)], 4096)

        found = expected_reward(
            model(row).choices.detach(), torch.tensor([REWARDS[LABELS[patient]]])
        )

        assert float(found[0]) == pytest.approx(mean_reward(model, patient), abs=1e-5)


def test_numbers_in_one_token_are_chosen_among_with_the_tens_digits(path, tokens):
    model = policy(path)
    plain = group(0, [12], tokens)
    (branches,) = plain.branches
    whole = (ord("#"), ord("%"))
    (row,) = pack([replace(plain, branches=(replace(known(branches), whole=whole),))], 4096)

    found = model(row).choices[0].detach()

    causal = untyped(model.peft_model).get_base_model()
    implementation = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa")
    prefix = list(map(ord, PROMPTS[0] + OPENINGS[0][0] + "0."))
    with torch.no_grad():
        logits = causal(torch.tensor([prefix])).logits[0, -1]
    causal.set_attn_implementation(implementation)
    expected = logits[[*map(ord, "0123456789"), *whole]].log_softmax(-1)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:, :10].exp().sum(1), torch.ones(10))
    assert bool((found[1:, 10:] == FORBIDDEN).all())


def test_the_exact_gradient_is_that_of_finite_differences(path, tokens):
    model = policy(path)
    (row,) = pack([group(0, [12], tokens)], 4096)
    exact = gradient(model, -SCALE * exact_loss(row, model, model, [0]))
    direction, step = exact / exact.norm(), 0.001
    sizes = [weight.numel() for weight in model.parameters()]

    def at(distance):
        shifted = policy(path)
        with torch.no_grad():
            parts = direction.split(sizes)
            for weight, part in zip(shifted.parameters(), parts, strict=True):
                weight += distance * part.view_as(weight)
        return mean_reward(shifted, 0)

    slope = (at(step) - at(-step)) / (2 * step)
    assert slope == pytest.approx(float(exact.norm()), rel=5e-3)


def test_the_exact_gradient_does_not_depend_on_the_packing(path, tokens):
    old, model = policy(path), moved(policy(path), 0.1)
    groups = [group(0, (12, 34, 56), tokens), group(1, (78, 90), tokens)]
    labels = [0, 0, 0, 1, 1]

    def packed(order, budget):
        total = 0.0
        chosen = [groups[i] for i in order]
        of_sequence = [label for i in order for label in ([0] * 3, [1] * 2)[i]]
        rows = pack(chosen, budget)
        for row in rows:
            own = [of_sequence[row.sequences[place]] for place in known(row.choices).responses]
            total = total + exact_loss(row, model, old, own)
        return len(rows), gradient(model, total)

    assert sorted(labels) == labels
    together, split, alone = packed((0, 1), 4096), packed((1, 0), 120), packed((0, 1), 85)
    assert together[0] == 1
    assert 1 < split[0] < alone[0]
    torch.testing.assert_close(split[1], together[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone[1], together[1], atol=1e-5, rtol=1e-4)


def test_branches_change_nothing_for_the_tokens_that_were_sampled(path, tokens):
    model = policy(path)
    with_branches = group(0, (12, 34, 56), tokens)
    (branched,) = pack([with_branches], 4096)
    (plain,) = pack([replace(with_branches, branches=())], 4096)

    torch.testing.assert_close(model(branched)[0], model(plain)[0], atol=1e-5, rtol=1e-5)
    assert model(plain).choices is None


def test_the_sampled_numbers_log_probability_is_among_the_choices(path, tokens):
    model = policy(path)
    (row,) = pack([group(0, (12, 34, 56), tokens)], 4096)

    logprobs, choices = row.padded(model(row)[0]).sum(1), model(row).choices

    # The other tokens of a number are forced: their log-probability is 0.
    found = [numbers_of(each)[n] for each, n in zip(choices, (12, 34, 56), strict=True)]
    torch.testing.assert_close(logprobs, torch.stack(found), atol=1e-5, rtol=1e-5)
