"""The whole objective, from rewards to gradient, on random rollout batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.objective_cases import (
    flat_policy_loss,
    loss_inputs,
    micro_batch,
    our_loss,
    random_case,
    reference_loss,
)
from training.config.loading import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = {
    "grpo": load_config([CONFIGS / "demo.yaml", CONFIGS / "presets" / "grpo.yaml"]).grpo,
    "dapo": load_config([CONFIGS / "demo.yaml", CONFIGS / "presets" / "dapo.yaml"]).grpo,
    "eag_rl": load_config([CONFIGS / "demo.yaml"]).grpo,
}
sections = st.builds(
    lambda method, aggregation, cap: METHODS[method].model_copy(
        update={"aggregation": aggregation, "importance_cap": cap}
    ),
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(["sequence_mean", "token_mean", "sum"]),
    st.sampled_from([None, 1.0, 2.0]),
)
seeds = st.integers(0, 10_000)


def assert_same(ours: tuple, theirs: tuple) -> None:
    """Loss parts and gradients of two ways to compute them."""
    torch.testing.assert_close(ours[0].loss, theirs[0].loss)
    torch.testing.assert_close(ours[1], theirs[1])


def test_the_methods_are_settings_of_one_function():
    grpo, dapo, eag_rl = METHODS["grpo"], METHODS["dapo"], METHODS["eag_rl"]

    bounds = [(s.clip_low, s.clip_high_min, s.clip_high_max) for s in (grpo, dapo, eag_rl)]
    assert bounds == [(0.2, 0.2, 0.2), (0.2, 0.28, 0.28), (0.2, 0.2, 0.4)]
    assert [s.aggregation for s in (grpo, dapo, eag_rl)] == [
        "sequence_mean",
        "token_mean",
        "sequence_mean",
    ]


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
@pytest.mark.parametrize("method", sorted(METHODS))
@settings(max_examples=5)
@given(seed=seeds)
def test_loss_and_gradient_equal_the_reference_with_both_clips_hit(method, aggregation, cap, seed):
    section = METHODS[method].model_copy(update={"aggregation": aggregation, "importance_cap": cap})
    case = random_case(seed)

    parts, gradient = our_loss(case, section)
    loss, expected = reference_loss(case, section)

    assert parts.loss.item() == pytest.approx(loss, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert parts.num_clipped_low > 0
    assert parts.num_clipped_high > 0


@settings(max_examples=30)
@given(seeds, sections)
def test_at_ratio_one_the_gradient_is_reinforce_whatever_the_clip(seed, section):
    case = random_case(seed)
    case = replace(case, logp=case.old_logp)
    inputs = loss_inputs(case, section)

    _, gradient = our_loss(case, section)

    lengths = {
        "sequence_mean": case.mask.sum(1, keepdim=True).clamp(min=1) * len(case.rewards),
        "token_mean": case.mask.sum(),
        "sum": len(case.rewards),
    }[section.aggregation]
    weights = 1.0 if inputs["importance_weight"] is None else inputs["importance_weight"]
    expected = -inputs["advantage"][:, None] * weights * case.mask / lengths
    torch.testing.assert_close(gradient, expected)


@settings(max_examples=30)
@given(seeds, sections)
def test_the_upper_clip_changes_a_gradient_only_where_a_rewarded_token_rose_above_it(seed, section):
    case = random_case(seed)
    inputs = loss_inputs(case, section)
    gradients = []
    for bound in (inputs["clip_high"], torch.full_like(inputs["clip_high"], 1e9)):
        logp = case.logp.clone().requires_grad_()
        loss = flat_policy_loss(**{**inputs, "logp": logp, "clip_high": bound}).loss
        gradients.append(torch.autograd.grad(loss, logp)[0])

    changed = gradients[0] != gradients[1]

    ratio = (case.logp - case.old_logp).exp()
    above = ratio > (1 + inputs["clip_high"])[:, None]
    assert torch.equal(changed, case.mask & (inputs["advantage"] > 0)[:, None] & above)
    assert changed.any()


@settings(max_examples=20)
@given(seeds, sections, st.integers(1, 5))
def test_padding_changes_nothing(seed, section, width):
    case = random_case(seed)
    garbage = torch.full((len(case.rewards), width), torch.nan, dtype=torch.float64)
    off = torch.zeros(len(case.rewards), width, dtype=torch.bool)

    def wider(name: str) -> torch.Tensor:
        value = getattr(case, name)
        return torch.cat([value, off if value.dtype is torch.bool else garbage], 1)

    names = [name for name in vars(case) if name not in ("group_size", "rewards")]
    padded = replace(case, **{name: wider(name) for name in names})

    parts, gradient = our_loss(padded, section)
    torch.testing.assert_close(gradient[:, -width:], torch.zeros_like(garbage))
    assert_same((parts, gradient[:, :-width]), our_loss(case, section))


@settings(max_examples=20)
@given(seeds, sections, st.randoms(use_true_random=False))
def test_the_order_of_samples_and_of_groups_changes_nothing(seed, section, random):
    case = random_case(seed, num_groups=3)
    groups = random.sample(range(3), 3)
    order = torch.tensor([4 * g + i for g in groups for i in random.sample(range(4), 4)])

    parts, gradient = our_loss(case.taken(order), section)

    expected, whole = our_loss(case, section)
    assert_same((parts, gradient), (expected, whole[order]))


@settings(max_examples=20)
@given(seeds, sections, st.floats(0.5, 3), st.floats(-5, 5))
def test_scale_and_shift_of_rewards_and_of_entropies_change_nothing(seed, section, scale, shift):
    case = random_case(seed)
    moved = replace(
        case, rewards=case.rewards * scale + shift, entropy=case.entropy * scale + shift
    )

    assert_same(our_loss(moved, section), our_loss(case, section))


@pytest.mark.parametrize("group_size", range(2, 17))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_equal_rewards_give_exactly_no_gradient(method, group_size):
    case = random_case(1, group_size=group_size)
    equal = torch.full_like(case.rewards, 0.1 + 0.2)

    parts, gradient = our_loss(replace(case, rewards=equal), METHODS[method])

    assert parts.loss.item() == 0
    assert not gradient.any()


@settings(max_examples=10)
@given(seeds, sections)
def test_one_batch_of_32_is_4_of_8_and_any_ragged_split(seed, section):
    case = random_case(seed, num_groups=4, group_size=8)
    logp = case.logp.clone().requires_grad_()
    inputs = loss_inputs(replace(case, logp=logp), section)
    whole = our_loss(case, section)

    for sizes in ([8] * 4, [1] * 32, [3, 14, 1, 9, 5]):
        losses = [
            flat_policy_loss(**micro_batch(inputs, part)).loss
            for part in torch.arange(32).split(sizes)
        ]
        total = torch.stack(losses).sum()
        torch.testing.assert_close(total, whole[0].loss)
        torch.testing.assert_close(torch.autograd.grad(total, logp, retain_graph=True)[0], whole[1])


def test_a_sequence_without_salient_tokens_gets_the_lower_bound_whatever_its_entropy():
    case = random_case(5)
    wild = replace(case, entropy=case.entropy.clone())
    wild.entropy[2] = 1e6  # its features block was empty or unreadable

    ours, theirs = (loss_inputs(each, METHODS["eag_rl"])["clip_high"] for each in (wild, case))

    assert float(ours[2]) == pytest.approx(0.2)
    assert torch.equal(ours, theirs)


@settings(max_examples=10)
@given(st.integers(0, 10_000), sections)
def test_the_gradient_of_a_two_layer_policy_is_that_of_finite_differences(seed, section):
    case = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*case.logp.shape, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(3 * 4 + 4, generator=generator, dtype=torch.float64) * 0.5

    def loss(flat: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(features @ flat[:12].view(3, 4))
        # Differences to what was sampled, of the size at which clips begin.
        logp = case.old_logp + 0.4 * (hidden @ flat[12:])
        return flat_policy_loss(**loss_inputs(replace(case, logp=logp), section)).loss

    flat = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(flat), flat)

    step = 1e-7  # far smaller than a token's distance to its clip, in all but a freak case
    found = torch.stack(
        [(loss(weights + step * e) - loss(weights - step * e)) / (2 * step) for e in torch.eye(16)]
    )
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
